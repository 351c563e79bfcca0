//! Tasks, verifiers, rewards and procedural task families.

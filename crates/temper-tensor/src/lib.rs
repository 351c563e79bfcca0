//! The engine: buffers, fused operations with hand-written backward, tape, GEMM, attention, head terms, optimiser step.

//! The crate's one error type.

/// What can go wrong in the engine. Every variant names the operation, what was found and what was expected.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// A tensor has the wrong shape for an operation.
    #[error("`{op}`: {what} has shape [{}, {}], expected {expected}", got.0, got.1)]
    Shape {
        /// The operation.
        op: &'static str,
        /// Which of its arguments.
        what: &'static str,
        /// The shape found (rows, columns).
        got: (usize, usize),
        /// What would have been right.
        expected: String,
    },
    /// A plain count (of ids, positions, values) is wrong.
    #[error("`{op}`: {got} {what}, expected {expected}")]
    Count {
        /// The operation.
        op: &'static str,
        /// What was counted.
        what: &'static str,
        /// The count found.
        got: usize,
        /// The count expected.
        expected: usize,
    },
    /// An index (token id, row, column) is out of range.
    #[error("`{op}`: index {index} is out of range, expected less than {len}")]
    Index {
        /// The operation.
        op: &'static str,
        /// The index found.
        index: usize,
        /// The number of entries.
        len: usize,
    },
    /// A number is outside its domain.
    #[error("`{op}`: {what} is {got}, expected {expected}")]
    Value {
        /// The operation.
        op: &'static str,
        /// Which of its arguments.
        what: &'static str,
        /// The value found.
        got: String,
        /// What would have been right.
        expected: &'static str,
    },
    /// A list of segments is not a valid batch layout.
    #[error("segment {segment}: {why}")]
    Segment {
        /// Index of the offending segment.
        segment: usize,
        /// What is wrong with it.
        why: String,
    },
    /// An attention shape that the kernels do not support.
    #[error("attention shape: {what} is {got}, expected {expected}")]
    AttnShape {
        /// The field.
        what: &'static str,
        /// Its value.
        got: usize,
        /// What is supported.
        expected: String,
    },
    /// A key/value cache does not fit the call.
    #[error("key/value cache: {what} is {got}, expected {expected}")]
    Cache {
        /// What does not fit.
        what: &'static str,
        /// The value found.
        got: usize,
        /// The value expected.
        expected: usize,
    },
    /// A matrix that is kept for reading alone was to be updated.
    #[error("{op}: the matrix has no f32 values to update")]
    Frozen {
        /// The operation.
        op: &'static str,
    },
    /// A matrix in quantised blocks was to be differentiated or changed.
    #[error("`{op}`: the matrix is in quantised blocks, which can only be read; load the model in f32")]
    Quantised {
        /// The operation.
        op: &'static str,
    },
    /// `TEMPER_ISA` names no level that this processor offers.
    #[error("TEMPER_ISA is `{value}`, expected one of {expected}")]
    Isa {
        /// The variable's value.
        value: String,
        /// The levels that would work.
        expected: String,
    },
    /// The parameter is a matrix where a vector is needed, or the other way round.
    #[error("`{op}`: parameter `{name}` is not a {expected}")]
    ParamKind {
        /// The operation.
        op: &'static str,
        /// The parameter's name.
        name: String,
        /// "matrix" or "vector".
        expected: &'static str,
    },
    /// A parameter name is used twice.
    #[error("parameter `{name}` is already defined, expected a name that is not in use")]
    DuplicateParam {
        /// The name.
        name: String,
    },
    /// A gradient was asked of, or given for, a parameter that has none.
    #[error("parameter `{name}` has no gradient buffer; mark it trainable before the buffers are made")]
    NoGrad {
        /// The parameter's name.
        name: String,
    },
    /// A value that carries gradient was used on another tape than its own, or after backward used its record up.
    #[error(
        "`{op}`: a recorded value of another tape (or of before backward) was used; pass it through the inputs of \
         `checkpoint`, or detach it"
    )]
    ForeignVar {
        /// The operation.
        op: &'static str,
    },
    /// The operation cannot be recorded for backward.
    #[error("`{op}` has no backward; call it on a tape that does not record")]
    NotDifferentiable {
        /// The operation.
        op: &'static str,
    },
    /// Backward was asked of a value that nothing trainable leads to, or of a tape that was used up.
    #[error("backward: the value is not on the record (nothing trainable leads to it, or backward ran already)")]
    NotRecorded,
    /// Rows of an intermediate value can no longer be attributed to examples, so no per-example gradient exists.
    #[error("per-example gradient of parameter `{name}`: its input's rows do not stand for rows of the batch")]
    Unattributed {
        /// The parameter's name.
        name: String,
    },
    /// A hook's tensor does not fit the value at its point.
    #[error("point `{point}`: the hook's tensor has shape [{}, {}], the value has [{}, {}]", got.0, got.1, value.0, value.1)]
    Hook {
        /// The point's name.
        point: String,
        /// Shape of the hook's tensor.
        got: (usize, usize),
        /// Shape of the value.
        value: (usize, usize),
    },
}

/// The crate's result type.
pub type Result<T> = std::result::Result<T, Error>;

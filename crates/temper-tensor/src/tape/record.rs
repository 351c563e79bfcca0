//! What is recorded: handles, nodes, and values that are made again in backward rather than kept.

use std::rc::Rc;
use std::sync::Arc;

use crate::error::Result;
use crate::kernels::dropout::Dropout;
use crate::ops::{AttnShape, Binary, Gate, Ops, Reduce, RopeTable, Tensor, Unary};
use crate::params::{ParamId, Params};
use crate::segments::Segments;
use crate::tape::Tape;

/// Which rows of the batch the rows of a value stand for (needed for per-example gradients only).
#[derive(Debug, Clone)]
pub(crate) enum Origin {
    /// Row r is the batch's row r.
    Identity,
    /// Row r is the batch's row `map[r]`.
    Mapped(Arc<[u32]>),
    /// Rows are not rows of the batch any more.
    Lost,
}

impl Origin {
    /// Origin after taking the rows `rows`.
    pub(crate) fn select(&self, rows: &[u32]) -> Self {
        match self {
            Self::Identity => Self::Mapped(rows.into()),
            Self::Mapped(map) => Self::Mapped(rows.iter().map(|&r| map[r as usize]).collect()),
            Self::Lost => Self::Lost,
        }
    }
}

/// A handle on a value of a tape. Cloning is cheap.
#[derive(Debug, Clone)]
pub struct Var {
    inner: Rc<VarInner>,
}

#[derive(Debug)]
struct VarInner {
    value: Rc<Tensor>,
    node: Option<usize>,
    mark: Rc<()>,
    origin: Origin,
    recipe: Option<Rc<Recipe>>,
}

impl Var {
    pub(crate) fn new(value: Rc<Tensor>, node: Option<usize>, mark: &Rc<()>, origin: Origin) -> Self {
        Self { inner: Rc::new(VarInner { value, node, mark: Rc::clone(mark), origin, recipe: None }) }
    }

    /// The value.
    pub fn tensor(&self) -> &Tensor {
        &self.inner.value
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.inner.value.rows()
    }

    /// Number of columns.
    pub fn cols(&self) -> usize {
        self.inner.value.cols()
    }

    /// Whether backward can reach something trainable from here.
    pub fn carries_grad(&self) -> bool {
        self.inner.node.is_some()
    }

    /// The same value without its history.
    #[must_use]
    pub fn detach(&self) -> Self {
        Self::new(self.value(), None, &self.inner.mark, self.origin())
    }

    /// The value alone, copied only where something else holds it too.
    pub(crate) fn into_tensor(self, ops: &dyn Ops) -> Result<Tensor> {
        let value = Rc::try_unwrap(self.inner).map_or_else(|shared| Rc::clone(&shared.value), |own| own.value);
        Rc::try_unwrap(value).or_else(|shared| ops.copy(&shared))
    }

    pub(crate) fn value(&self) -> Rc<Tensor> {
        Rc::clone(&self.inner.value)
    }

    pub(crate) fn node(&self) -> Option<usize> {
        self.inner.node
    }

    pub(crate) fn origin(&self) -> Origin {
        self.inner.origin.clone()
    }

    pub(crate) fn is_on(&self, mark: &Rc<()>) -> bool {
        Rc::ptr_eq(&self.inner.mark, mark)
    }

    /// What backward should keep in order to read this value: its recipe where it has one.
    pub(crate) fn saved(&self) -> Saved {
        self.inner.recipe.as_ref().map_or_else(|| Saved::Value(self.value()), |r| Saved::Recipe(Rc::clone(r)))
    }

    /// Marks the value as cheaper to make again than to keep.
    pub(crate) fn with_recipe(self, record: bool, recipe: impl FnOnce() -> Recipe) -> Self {
        if !record {
            return self;
        }
        let (value, node, origin) = (self.value(), self.node(), self.origin());
        let mark = Rc::clone(&self.inner.mark);
        Self { inner: Rc::new(VarInner { value, node, mark, origin, recipe: Some(Rc::new(recipe())) }) }
    }
}

/// How to make a value again, bitwise.
#[derive(Debug)]
pub(crate) enum Recipe {
    RmsNorm { x: Rc<Tensor>, w: ParamId, eps: f32 },
    Glu { kind: Gate, gate: Rc<Tensor>, up: Rc<Tensor> },
    Dropout { x: Saved, rule: Dropout, stream: u64 },
}

impl Recipe {
    pub(crate) fn make(&self, ops: &dyn Ops, params: &Params) -> Result<Tensor> {
        match self {
            Self::RmsNorm { x, w, eps } => ops.rms_norm(x, params.vector("rms_norm", *w)?, *eps),
            Self::Glu { kind, gate, up } => ops.glu(*kind, gate, up),
            Self::Dropout { x: Saved::Value(x), rule, stream } => ops.dropout(x, rule, *stream),
            Self::Dropout { x: Saved::Recipe(x), rule, stream } => ops.dropout(&x.make(ops, params)?, rule, *stream),
        }
    }
}

/// A value kept for backward, or the recipe for it.
#[derive(Debug)]
pub(crate) enum Saved {
    Value(Rc<Tensor>),
    Recipe(Rc<Recipe>),
}

type Block<'a> = Box<dyn Fn(&Tape<'a>, &[Var]) -> Result<Var> + 'a>;

/// One recorded operation with what its backward reads.
pub(crate) enum Op<'a> {
    Input,
    Embedding {
        w: ParamId,
        ids: Arc<[u32]>,
        origin: Origin,
    },
    Linear {
        w: ParamId,
        x: Option<Saved>,
        origin: Origin,
    },
    /// The inputs are the base and x.
    LinearOnto {
        w: ParamId,
        x: Option<Saved>,
        origin: Origin,
    },
    Dropout {
        rule: Dropout,
        stream: u64,
    },
    Bias {
        b: ParamId,
        origin: Origin,
    },
    RmsNorm {
        w: ParamId,
        x: Rc<Tensor>,
        eps: f32,
        origin: Origin,
    },
    Rope {
        heads: usize,
        table: &'a RopeTable,
        positions: Arc<[u32]>,
    },
    Attention {
        q: Rc<Tensor>,
        k: Rc<Tensor>,
        v: Rc<Tensor>,
        out: Rc<Tensor>,
        lse: Tensor,
        segments: Arc<Segments>,
        shape: AttnShape,
    },
    Glu {
        kind: Gate,
        gate: Rc<Tensor>,
        up: Rc<Tensor>,
    },
    Checkpoint {
        inputs: Vec<(Rc<Tensor>, Origin)>,
        block: Block<'a>,
    },
    /// Sum of equal shapes.
    Add,
    Unary {
        op: Unary,
        x: Rc<Tensor>,
        y: Rc<Tensor>,
    },
    Binary {
        op: Binary,
        a: Rc<Tensor>,
        b: Rc<Tensor>,
    },
    Sum {
        shape: (usize, usize),
    },
    Expand {
        over: Reduce,
    },
    Matmul {
        a: Rc<Tensor>,
        b: Rc<Tensor>,
        nt: bool,
    },
    Softmax {
        y: Rc<Tensor>,
        log: bool,
    },
    Pick {
        cols: Arc<[u32]>,
        width: usize,
    },
    GatherRows {
        rows: Arc<[u32]>,
        from: usize,
    },
    ScatterAddRows {
        rows: Arc<[u32]>,
    },
    Transpose,
    ConcatRows {
        rows: Vec<usize>,
    },
    Slice {
        shape: (usize, usize),
        at: (usize, usize),
    },
    Reshape {
        shape: (usize, usize),
    },
}

/// An operation and the nodes of its inputs (none where an input carries no gradient).
pub(crate) struct Node<'a> {
    pub(crate) op: Op<'a>,
    pub(crate) inputs: Vec<Option<usize>>,
}

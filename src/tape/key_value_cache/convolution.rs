//! A causal gated convolution when decoding. What it convolves, the layer's input of earlier tokens, is kept as keys and
//! values are; a step gates and weighs again the few rows that its window reaches, which is little beside the products
//! around it.

use super::super::run::Run;
use super::super::{Error, GatedConvOptions, Needs, Operation, ParameterId, Tape, Value};
use super::Cache;
use crate::ops::gated_conv::{self, Forward, Shape, Window};
use crate::ops::{self, Write};
use std::sync::Arc;

struct CachedGatedConv {
    /// `time` counts the new tokens.
    shape: Shape,
    has_bias: bool,
    cache: Arc<Cache>,
}

impl CachedGatedConv {
    /// Positions before a token that its window reaches.
    fn reach(&self) -> usize {
        (self.shape.taps - 1) * self.shape.dilation
    }
}

impl Tape<'_> {
    /// Records [`gated_conv`](Self::gated_conv) in a causal window over new tokens and those in the cache, to which the
    /// new ones are added. Rows of the cache and positions as for [`attention_cached`](Self::attention_cached).
    ///
    /// # Shapes
    /// input `(B, T, 2·C)`, weight `(C, K)`, bias `(C)`; result `(B, T, C)`. The cache has `C` key columns.
    ///
    /// # Errors
    /// Shapes that do not fit together; a training tape.
    pub fn gated_conv_cached(
        &mut self,
        input: Value,
        weight: ParameterId,
        bias: Option<ParameterId>,
        dilation: usize,
        cache: &Arc<Cache>,
    ) -> Result<Value, Error> {
        let operation = "gated_conv_cached";
        let options = GatedConvOptions { window: Window::Causal, dilation };
        let shape = self.gated_conv_shape(operation, input, weight, bias, &options)?;
        let Shape { batch, time, channels, .. } = shape;
        if 2 * channels != cache.columns {
            let what = format!("the cache has {} columns for {}", cache.columns, 2 * channels);
            return Err(Error::Shape { operation, what });
        }
        let node = CachedGatedConv { shape, has_bias: bias.is_some(), cache: Arc::clone(cache) };
        let parameters: Vec<ParameterId> = std::iter::once(weight).chain(bias).collect();
        let results = [("gated_conv", vec![batch, time, channels], false)];
        Ok(self.push_node(node, &[input], &parameters, &results)?[0])
    }
}

impl Operation for CachedGatedConv {
    fn name(&self) -> &'static str {
        "gated_conv_cached"
    }

    /// The result of one sequence's window.
    fn forward_scratch(&self, _has_output: &[bool]) -> usize {
        (self.shape.time + self.reach()).min(self.cache.capacity) * self.shape.channels
    }

    fn backward_needs(&self) -> Option<Needs> {
        None
    }

    fn backward(&self, _run: &Run<'_>) -> Result<(), ops::Error> {
        unreachable!("an operation without a backward pass is not recorded for training")
    }

    fn forward(&self, run: &Run<'_>) -> Result<(), ops::Error> {
        let Shape { batch, time, channels, .. } = self.shape;
        let row_bytes = self.cache.columns * size_of::<f32>();
        let bytes = self.cache.append(run, self.name(), [batch, time], 0)?;
        for (b, &position) in run.options.positions.iter().enumerate() {
            let start = position.saturating_sub(self.reach());
            let (end, sequence) = (position + time, bytes.start + b * self.cache.capacity * row_bytes);
            // SAFETY: nothing writes to the cache until this call returns.
            let input = unsafe { self.cache.memory.view(sequence + start * row_bytes..sequence + end * row_bytes) };
            let mut window = run.scratch_of((end - start) * channels);
            let arguments = Forward {
                input,
                weight: run.parameter(0),
                bias: self.has_bias.then(|| run.parameter(1)),
                documents: None,
                output: window.reborrow(),
            };
            gated_conv::forward(run.device, &Shape { batch: 1, time: end - start, ..self.shape }, arguments)?;
            let new = window.slice((position - start) * channels..(end - start) * channels);
            let output = run.output(0).slice(b * time * channels..(b + 1) * time * channels);
            ops::add::accumulate(run.device, new.into(), output, Write::Set)?;
        }
        Ok(())
    }
}

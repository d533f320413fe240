//! What an update does to every parameter of GPT-2 124M: the gradient's norm, and AdamW.
//!
//! Ours walks one long run of memory, as the trainer lays parameters out; PyTorch has its list of 148 tensors and its
//! fused update.

use super::{Call, Case, Error, Family, Floats, Work};
use crate::ops::{Device, adamw, grad_norm};
use std::sync::Arc;

/// Parameters of GPT-2 124M.
const PARAMETERS: usize = 124_439_808;

pub(super) fn cases() -> Vec<Case> {
    let case = |name: &str, bytes: Work, pytorch: &str, prepare: fn(Arc<Device>) -> Result<Call, Error>| Case {
        family: Family::Optimizer,
        name: name.to_owned(),
        work: bytes,
        pytorch: Some(pytorch.to_owned()),
        prepare: Box::new(move |device| prepare(Arc::clone(device))),
    };
    vec![
        case("grad_norm 124M", Work::Read(4.0 * PARAMETERS as f64), "grad_norm", prepare_norm),
        // Reads parameter, gradient and both moments; writes all but the gradient.
        case("adamw 124M", Work::Moved(28.0 * PARAMETERS as f64), "adamw", prepare_adamw),
    ]
}

fn prepare_norm(device: Arc<Device>) -> Result<Call, Error> {
    let gradients = Floats::numbers(&device, PARAMETERS)?;
    Ok(Box::new(move || {
        std::hint::black_box(grad_norm::forward(&device, &[(&gradients).into()]).unwrap());
        Ok(())
    }))
}

fn prepare_adamw(device: Arc<Device>) -> Result<Call, Error> {
    let (mut parameters, gradients) = (Floats::numbers(&device, PARAMETERS)?, Floats::numbers(&device, PARAMETERS)?);
    let (mut first_moments, mut second_moments) =
        (Floats::zeros(&device, PARAMETERS)?, Floats::zeros(&device, PARAMETERS)?);
    let mut step = 0;
    Ok(Box::new(move || {
        step += 1;
        let hyper = adamw::Hyper {
            learning_rate: 1e-4,
            beta1: 0.9,
            beta2: 0.999,
            epsilon: 1e-8,
            weight_decay: 0.1,
            step,
            grad_factor: 1.0,
        };
        let arguments = adamw::Update {
            parameter: (&mut parameters).into(),
            gradient: (&gradients).into(),
            first_moment: (&mut first_moments).into(),
            second_moment: (&mut second_moments).into(),
        };
        Ok(adamw::update(&device, &hyper, arguments)?)
    }))
}

//! Measures the cases, one after the other, each in turns with PyTorch where that is asked for.

use super::cases::{self, Case};
use super::pytorch::{self, Partner};
use super::timing::{pause, seconds};
use crate::ops::Device;
use std::sync::Arc;
use std::time::Instant;

/// Turns of each side. The median is over the calls of all turns, so a disturbance of one turn does not count.
const TURNS: usize = 5;
/// How long a turn lasts, or one call where that takes longer.
const TURN_SECONDS: f64 = 0.05;
/// A turn starts with an uncounted call where calls are shorter than this: it brings back into the caches what the
/// other side's turn displaced.
const SHORT_CALL_SECONDS: f64 = 0.02;

/// Seconds of each call.
#[derive(Clone, Debug, PartialEq)]
pub struct Times {
    pub ours: Vec<f64>,
    pub theirs: Option<Vec<f64>>,
}

/// A case cannot be measured.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Case(#[from] cases::Error),
    #[error(transparent)]
    Device(#[from] crate::driver::Error),
    #[error(transparent)]
    PyTorch(#[from] pytorch::Error),
}

/// Measures a case.
///
/// # Errors
/// The case fails, or the partner does.
pub fn measure(case: &Case, device: &Arc<Device>, partner: Option<&mut Partner>) -> Result<Times, Error> {
    let mut run = case.prepare(device)?;
    let mut call = || -> Result<(), Error> {
        run()?;
        Ok(device.synchronize()?)
    };
    let mut partner = match (partner, &case.pytorch) {
        (Some(partner), Some(words)) => {
            partner.expect(&format!("prepare {words}"), "ready")?;
            Some(partner)
        }
        _ => None,
    };
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    call()?;
    for _ in 0..TURNS {
        if let Some(partner) = &mut partner {
            theirs.extend(partner.seconds(&format!("run {TURN_SECONDS}"))?);
            pause();
        }
        let start = Instant::now();
        if ours.last().is_none_or(|&seconds| seconds < SHORT_CALL_SECONDS) {
            call()?;
        }
        ours.push(seconds(&mut call)?);
        while start.elapsed().as_secs_f64() < TURN_SECONDS {
            ours.push(seconds(&mut call)?);
        }
        if partner.is_some() {
            pause();
        }
    }
    Ok(Times { ours, theirs: partner.is_some().then_some(theirs) })
}

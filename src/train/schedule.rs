//! The learning rate over time, as a factor of the largest: a linear warm-up, then one of four shapes.
//!
//! ```text
//! step < warmup            (step + 1) / (warmup + 1)
//! cosine, linear           from 1 at `warmup` to `min_factor` at `decay_steps`, and there it stays
//! constant                 1
//! wsd                      1, then over the last share of `decay_steps` min + (1 - min) (1 - √p), p from 0 to 1
//! ```
//!
//! The warm-up counts as nanoGPT does: never 0, and 1 in the first step after it. Warm-up-stable-decay is Hu et al. 2024
//! (MiniCPM) with the square-root cooldown that Hägele et al. 2024 found best: its stable part does not depend on the
//! end, so a run can be made longer without starting again.

use crate::train::config::{Config, ScheduleKind};

/// A schedule with all its figures.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Schedule {
    pub kind: ScheduleKind,
    /// Updates of the warm-up.
    pub warmup: usize,
    /// Update at which the factor has come down to `min_factor`.
    pub decay_steps: usize,
    /// The factor at the end.
    pub min_factor: f64,
    /// Share of `decay_steps` that the decay of `wsd` takes.
    pub wsd_decay_fraction: f64,
}

impl Schedule {
    /// The schedule that a configuration asks for.
    pub fn new(config: &Config) -> Self {
        Self {
            kind: config.schedule.kind,
            warmup: config.schedule.warmup,
            decay_steps: config.decay_steps(),
            min_factor: config.schedule.min_factor,
            wsd_decay_fraction: config.schedule.wsd_decay_fraction,
        }
    }

    /// The factor of the update that follows `step` completed ones, so the first is `factor(0)`.
    pub fn factor(&self, step: usize) -> f64 {
        if step < self.warmup {
            return (step + 1) as f64 / (self.warmup + 1) as f64;
        }
        let decay_start = match self.kind {
            ScheduleKind::Constant => return 1.0,
            ScheduleKind::Cosine | ScheduleKind::Linear => self.warmup,
            ScheduleKind::Wsd => {
                let decay = (self.decay_steps as f64 * self.wsd_decay_fraction).round() as usize;
                self.decay_steps.saturating_sub(decay).max(self.warmup)
            }
        };
        if step >= self.decay_steps {
            return self.min_factor;
        }
        if step <= decay_start {
            return 1.0;
        }
        let progress = (step - decay_start) as f64 / (self.decay_steps - decay_start) as f64;
        let remaining = match self.kind {
            ScheduleKind::Cosine => 0.5 * (1.0 + (std::f64::consts::PI * progress).cos()),
            ScheduleKind::Wsd => 1.0 - progress.sqrt(),
            ScheduleKind::Linear | ScheduleKind::Constant => 1.0 - progress,
        };
        self.min_factor + (1.0 - self.min_factor) * remaining
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schedule(kind: ScheduleKind) -> Schedule {
        Schedule { kind, warmup: 4, decay_steps: 12, min_factor: 0.125, wsd_decay_fraction: 0.25 }
    }

    #[test]
    fn warm_up_rises_in_equal_steps_and_never_starts_at_zero() {
        for kind in [ScheduleKind::Cosine, ScheduleKind::Linear, ScheduleKind::Constant, ScheduleKind::Wsd] {
            let factors: Vec<f64> = (0..5).map(|step| schedule(kind).factor(step)).collect();
            assert_eq!(factors, [0.2, 0.4, 0.6, 0.8, 1.0], "{kind:?}");
        }
    }

    #[test]
    fn linear_falls_in_equal_steps_to_the_least_factor_and_stays() {
        let schedule = schedule(ScheduleKind::Linear);
        assert_eq!(schedule.factor(6), 0.125 + 0.875 * 0.75);
        assert_eq!(schedule.factor(8), 0.125 + 0.875 * 0.5);
        assert_eq!(schedule.factor(11), 0.125 + 0.875 * 0.125);
        assert_eq!((schedule.factor(12), schedule.factor(13), schedule.factor(1000)), (0.125, 0.125, 0.125));
    }

    #[test]
    fn cosine_follows_half_a_wave() {
        let schedule = schedule(ScheduleKind::Cosine);
        assert!((schedule.factor(6) - (0.125 + 0.875 * (0.5 + 0.125f64.sqrt()))).abs() < 1e-15);
        assert!((schedule.factor(8) - (0.125 + 0.875 * 0.5)).abs() < 1e-15);
        assert_eq!(schedule.factor(12), 0.125);
    }

    #[test]
    fn constant_stays_at_one() {
        assert_eq!(schedule(ScheduleKind::Constant).factor(usize::MAX), 1.0);
    }

    #[test]
    fn wsd_is_stable_until_its_last_part() {
        let schedule = Schedule { decay_steps: 16, ..schedule(ScheduleKind::Wsd) };
        assert_eq!((schedule.factor(4), schedule.factor(12)), (1.0, 1.0));
        assert_eq!(schedule.factor(13), 0.125 + 0.875 * 0.5);
        assert_eq!(schedule.factor(16), 0.125);
    }

    #[test]
    fn the_stable_part_of_wsd_does_not_depend_on_the_end() {
        let (short, long) = (schedule(ScheduleKind::Wsd), Schedule { decay_steps: 900, ..schedule(ScheduleKind::Wsd) });
        assert!((0..=9).all(|step| short.factor(step) == long.factor(step)));
    }

    /// nanoGPT's `get_lr` for its Shakespeare recipe (warm-up 100, decay 2000, 1e-3 to 1e-4), by hand at five steps.
    #[test]
    fn matches_nanogpt() {
        let schedule = Schedule {
            kind: ScheduleKind::Cosine,
            warmup: 100,
            decay_steps: 2000,
            min_factor: 0.1,
            wsd_decay_fraction: 0.2,
        };
        let expected = [(0, 1.0 / 101.0), (99, 100.0 / 101.0), (100, 1.0), (1050, 0.55), (2000, 0.1)];
        for (step, factor) in expected {
            assert!((schedule.factor(step) - factor).abs() < 1e-15, "step {step}: {}", schedule.factor(step));
        }
    }

    #[test]
    fn degenerate_schedules_stay_within_their_range() {
        for kind in [ScheduleKind::Cosine, ScheduleKind::Linear, ScheduleKind::Constant, ScheduleKind::Wsd] {
            for (warmup, decay_steps, wsd_decay_fraction) in [(0, 1, 1.0), (10, 5, 0.2), (0, 3, 1e-9), (0, 0, 0.5)] {
                let schedule = Schedule { kind, warmup, decay_steps, min_factor: 0.0, wsd_decay_fraction };
                for step in 0..20 {
                    let factor = schedule.factor(step);
                    assert!((0.0..=1.0).contains(&factor), "{schedule:?} at {step}: {factor}");
                }
            }
        }
    }
}

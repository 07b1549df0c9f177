// SPDX-License-Identifier: MPL-2.0
//! Euler steps along the flow (`FlowMatchEulerDiscreteScheduler` of diffusers).

use serde::Deserialize;
use tch::Tensor;

use super::{Method, Schedule, TimeShiftType};
use super::{check_range, check_terminal, linspace, must_be_off, required_mu};
use super::{static_shift, stretch_to_terminal};
use crate::error::Result;

/// Settings of `FlowMatchEulerDiscreteScheduler`; defaults are those of diffusers.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default)]
pub struct FlowMatchEulerConfig {
    /// Number of noise levels in training; timesteps are this times sigma.
    pub num_train_timesteps: u32,
    /// Static shift of the noise levels; 1 leaves them evenly spaced.
    pub shift: f64,
    /// Whether `mu`, given per generation, takes the place of `shift`.
    pub use_dynamic_shifting: bool,
    /// How `mu` bends the noise levels.
    pub time_shift_type: TimeShiftType,
    /// Where to stretch the last noise level before the final zero; `None` or 0 leaves it.
    pub shift_terminal: Option<f64>,
    invert_sigmas: Option<bool>,
    use_karras_sigmas: Option<bool>,
    use_exponential_sigmas: Option<bool>,
    use_beta_sigmas: Option<bool>,
    stochastic_sampling: Option<bool>,
}

impl Default for FlowMatchEulerConfig {
    fn default() -> Self {
        Self {
            num_train_timesteps: 1000,
            shift: 1.0,
            use_dynamic_shifting: false,
            time_shift_type: TimeShiftType::Exponential,
            shift_terminal: None,
            invert_sigmas: None,
            use_karras_sigmas: None,
            use_exponential_sigmas: None,
            use_beta_sigmas: None,
            stochastic_sampling: None,
        }
    }
}

impl FlowMatchEulerConfig {
    /// Refuses settings that are out of range or not supported; `field` makes the name an error shows.
    pub(super) fn validate(&self, field: &dyn Fn(&str) -> String) -> Result<()> {
        check_range(
            self.shift,
            field("shift"),
            self.num_train_timesteps,
            field("num_train_timesteps"),
        )?;
        check_terminal(self.shift_terminal, field("shift_terminal"))?;
        let off = [
            ("invert_sigmas", self.invert_sigmas),
            ("use_karras_sigmas", self.use_karras_sigmas),
            ("use_exponential_sigmas", self.use_exponential_sigmas),
            ("use_beta_sigmas", self.use_beta_sigmas),
            ("stochastic_sampling", self.stochastic_sampling),
        ];
        must_be_off(&off, field)
    }

    /// The noise levels of `num_inference_steps` steps.
    pub(super) fn schedule(&self, num_inference_steps: usize, mu: Option<f64>) -> Result<Schedule> {
        let train_steps = f64::from(self.num_train_timesteps);
        let mut sigmas = linspace(
            f64::from(self.training_sigma(self.num_train_timesteps)) * train_steps,
            f64::from(self.training_sigma(1)) * train_steps,
            num_inference_steps,
        );
        // The ends of the range are already shifted once by `training_sigma`; the reference shifts them again.
        let mu = if self.use_dynamic_shifting { Some(required_mu(mu)?) } else { None };
        for sigma in &mut sigmas {
            *sigma = match mu {
                Some(mu) => self.time_shift_type.shift(mu, *sigma / train_steps),
                None => static_shift(self.shift, *sigma / train_steps),
            };
        }
        if let Some(terminal) = self.shift_terminal.filter(|&terminal| terminal != 0.0) {
            stretch_to_terminal(&mut sigmas, terminal);
        }
        let mut sigmas: Vec<f32> = sigmas.iter().map(|&sigma| sigma as f32).collect();
        let timesteps = sigmas.iter().map(|&sigma| sigma * train_steps as f32).collect();
        sigmas.push(0.0);
        Ok(Schedule { sigmas, timesteps, method: Method::Euler })
    }

    /// The noise level of training step `step` in 1..=num_train_timesteps, in float32 as the reference has it.
    fn training_sigma(&self, step: u32) -> f32 {
        let sigma = step as f32 / self.num_train_timesteps as f32;
        if self.use_dynamic_shifting {
            return sigma;
        }
        self.shift as f32 * sigma / (1.0 + (self.shift - 1.0) as f32 * sigma)
    }
}

/// One Euler step from `sigmas[index]` to `sigmas[index + 1]`.
pub(super) fn step(sigmas: &[f32], index: usize, flow_pred: &Tensor, sample: &Tensor) -> Tensor {
    let dt = sigmas[index + 1] - sigmas[index];
    sample + flow_pred.to_kind(sample.kind()) * f64::from(dt)
}

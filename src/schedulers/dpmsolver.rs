// SPDX-License-Identifier: MPL-2.0
//! DPM-Solver++ multistep for flow models (`DPMSolverMultistepScheduler` of diffusers), as an ordinary or a stochastic
//! differential equation.
//!
//! Maths after Lu et al. 2022, <https://arxiv.org/abs/2211.01095>, predicting the clean sample, of first or second order.
//! The stochastic solver brings fresh noise in with every step, which hides what earlier steps got wrong. The last step goes
//! all the way to the clean sample, where the reference reaches the same as a limit.

use serde::Deserialize;
use tch::Tensor;

use super::{Method, SAMPLE, Schedule};
use super::{check_flow_prediction, check_range, lambda, linspace, must_be_off, static_shift};
use crate::error::{Error, Result};

/// Which equation is solved.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
pub enum AlgorithmType {
    #[default]
    #[serde(rename = "dpmsolver++")]
    Ode,
    #[serde(rename = "sde-dpmsolver++")]
    Sde,
}

/// How the second-order term is integrated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DpmSolverType {
    /// Names of other solver families are read as this one, as diffusers does.
    #[default]
    #[serde(alias = "bh1", alias = "bh2", alias = "logrho")]
    Midpoint,
    Heun,
}

/// Settings of `DPMSolverMultistepScheduler`; defaults are those of diffusers.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default)]
pub struct DpmSolverConfig {
    /// Number of noise levels in training; timesteps are this times sigma, truncated.
    pub num_train_timesteps: u32,
    /// Order of the solver, 1 or 2.
    pub solver_order: usize,
    /// Whether noise is brought in with every step.
    pub algorithm_type: AlgorithmType,
    /// How the second-order term is integrated.
    pub solver_type: DpmSolverType,
    /// Static shift of the noise levels.
    pub flow_shift: f64,
    final_sigmas_type: String,
    prediction_type: String,
    use_flow_sigmas: bool,
    use_dynamic_shifting: Option<bool>,
    thresholding: Option<bool>,
    use_karras_sigmas: Option<bool>,
    use_exponential_sigmas: Option<bool>,
    use_beta_sigmas: Option<bool>,
    use_lu_lambdas: Option<bool>,
}

impl Default for DpmSolverConfig {
    fn default() -> Self {
        Self {
            num_train_timesteps: 1000,
            solver_order: 2,
            algorithm_type: AlgorithmType::Ode,
            solver_type: DpmSolverType::Midpoint,
            flow_shift: 1.0,
            final_sigmas_type: "zero".to_owned(),
            prediction_type: "epsilon".to_owned(),
            use_flow_sigmas: false,
            use_dynamic_shifting: None,
            thresholding: None,
            use_karras_sigmas: None,
            use_exponential_sigmas: None,
            use_beta_sigmas: None,
            use_lu_lambdas: None,
        }
    }
}

impl DpmSolverConfig {
    /// Refuses settings that are out of range or not supported; `field` makes the name an error shows.
    pub(super) fn validate(&self, field: &dyn Fn(&str) -> String) -> Result<()> {
        check_range(
            self.flow_shift,
            field("flow_shift"),
            self.num_train_timesteps,
            field("num_train_timesteps"),
        )?;
        if !(1..=2).contains(&self.solver_order) {
            return Err(Error::setting(field("solver_order"), self.solver_order, "1 or 2"));
        }
        check_flow_prediction(&self.prediction_type, self.use_flow_sigmas, field)?;
        if self.final_sigmas_type != "zero" {
            let name = field("final_sigmas_type");
            return Err(Error::setting(name, &self.final_sigmas_type, "zero, as flow models need"));
        }
        let off = [
            ("use_dynamic_shifting", self.use_dynamic_shifting),
            ("thresholding", self.thresholding),
            ("use_karras_sigmas", self.use_karras_sigmas),
            ("use_exponential_sigmas", self.use_exponential_sigmas),
            ("use_beta_sigmas", self.use_beta_sigmas),
            ("use_lu_lambdas", self.use_lu_lambdas),
        ];
        must_be_off(&off, field)
    }

    /// Whether the model's output is the clean sample, not the flow.
    pub(super) fn predicts_sample(&self) -> bool {
        self.prediction_type == SAMPLE
    }

    /// The noise levels of `num_inference_steps` steps.
    pub(super) fn schedule(&self, num_inference_steps: usize) -> Schedule {
        let train_steps = f64::from(self.num_train_timesteps);
        let alphas = linspace(1.0, 1.0 / train_steps, num_inference_steps + 1);
        let sigmas: Vec<f64> =
            alphas.iter().skip(1).rev().map(|a| static_shift(self.flow_shift, 1.0 - a)).collect();
        let timesteps = sigmas.iter().map(|&sigma| (sigma * train_steps).trunc() as f32).collect();
        let sigmas = sigmas.iter().chain([&0.0]).map(|&sigma| sigma as f32).collect();
        Schedule { sigmas, timesteps, method: Method::DpmSolver(self.clone()) }
    }
}

/// The sample at level `index + 1`, from the prediction `clean` made of `sample` at level `index` and, where there is one, the
/// prediction made a step `earlier`; `noise` is asked for where the settings want it.
pub(super) fn step(
    config: &DpmSolverConfig,
    (sigmas, index): (&[f32], usize),
    (clean, earlier): (&Tensor, Option<&Tensor>),
    sample: &Tensor,
    noise: &dyn Fn() -> Tensor,
) -> Tensor {
    let (sigma_t, sigma_s) = (sigmas[index + 1], sigmas[index]);
    // Limits where lambda has no finite, non-zero step.
    if sigma_t == 0.0 {
        return clean.shallow_clone();
    }
    if sigma_t == sigma_s {
        return sample.shallow_clone();
    }
    let h = lambda(sigma_t) - lambda(sigma_s);
    let is_sde = config.algorithm_type == AlgorithmType::Sde;
    // The stochastic equation forgets the sample twice as fast, in favour of the prediction and of noise.
    let decay = if is_sde { -2.0 * h } else { -h };
    let kept = sigma_t / sigma_s * if is_sde { (-h).exp() } else { 1.0 };
    let alpha_t = 1.0 - sigma_t;
    let gain = -alpha_t * decay.exp_m1();
    let mut next = sample * f64::from(kept) + clean * f64::from(gain);
    if let Some(earlier) = earlier.filter(|_| config.solver_order > 1) {
        let ratio = (lambda(sigma_s) - lambda(sigmas[index - 1])) / h;
        let weight = match config.solver_type {
            DpmSolverType::Midpoint => 0.5 * gain,
            DpmSolverType::Heun => alpha_t * (decay.exp_m1() / -decay + 1.0),
        };
        next += (clean - earlier) * f64::from(weight / ratio);
    }
    if is_sde {
        next += noise() * f64::from(sigma_t * (-decay.exp_m1()).sqrt());
    }
    next
}

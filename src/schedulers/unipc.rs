// SPDX-License-Identifier: MPL-2.0
//! UniPC multistep predictor-corrector for flow models (`UniPCMultistepScheduler` of diffusers).
//!
//! Maths after Zhao et al. 2023, <https://arxiv.org/abs/2302.04867>, B(h) variant, predicting the clean sample. With
//! `alpha = 1 - sigma` and `lambda = ln(alpha) - ln(sigma)`, a step from level s to level t is an exponential
//! integrator of order p over the last p predictions. The reference yields NaN where `lambda` has no finite step;
//! [`UniPcHistory::update`] takes the limit there instead.

use std::collections::VecDeque;

use serde::Deserialize;
use tch::Tensor;

use super::{Method, SAMPLE, Schedule, TimeShiftType};
use super::{check_flow_prediction, check_range, check_terminal, lambda, linspace, must_be_off};
use super::{required_mu, static_shift, stretch_to_terminal};
use crate::error::{Error, Result};

/// How far below 1 the first noise level is kept, so that `ln(1 - sigma)` stays finite.
const FIRST_SIGMA_MARGIN: f64 = 1e-6;

/// Which B(h) the solver uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SolverType {
    /// `B(h) = h`.
    Bh1,
    /// `B(h) = exp(h) - 1`; names of other solver families are read as this one, as diffusers does.
    #[default]
    #[serde(alias = "midpoint", alias = "heun", alias = "logrho")]
    Bh2,
}

/// The noise level after the last step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FinalSigmasType {
    /// 0, the clean sample.
    #[default]
    Zero,
    /// The level of the last step once more.
    SigmaMin,
}

/// Settings of `UniPCMultistepScheduler`; defaults are those of diffusers.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default)]
pub struct UniPcConfig {
    /// Number of noise levels in training; timesteps are this times sigma, truncated.
    pub num_train_timesteps: u32,
    /// Highest order of the solver.
    pub solver_order: usize,
    /// Which B(h) is used.
    pub solver_type: SolverType,
    /// Whether the last steps fall back to lower orders.
    pub lower_order_final: bool,
    /// Steps after which the corrector is left out.
    pub disable_corrector: Vec<usize>,
    /// Static shift of the noise levels (published: 3 for 480p, 5 for 720p).
    pub flow_shift: f64,
    /// The noise level after the last step.
    pub final_sigmas_type: FinalSigmasType,
    /// Whether `mu`, given per generation, takes the place of `flow_shift`.
    pub use_dynamic_shifting: bool,
    /// How `mu` bends the noise levels.
    pub time_shift_type: TimeShiftType,
    /// Where to stretch the last noise level before the final one; `None` or 0 leaves it.
    pub shift_terminal: Option<f64>,
    prediction_type: String,
    predict_x0: bool,
    thresholding: Option<bool>,
    use_flow_sigmas: bool,
    use_karras_sigmas: Option<bool>,
    use_exponential_sigmas: Option<bool>,
    use_beta_sigmas: Option<bool>,
    solver_p: Option<serde_json::Value>,
}

impl Default for UniPcConfig {
    fn default() -> Self {
        Self {
            num_train_timesteps: 1000,
            solver_order: 2,
            solver_type: SolverType::Bh2,
            lower_order_final: true,
            disable_corrector: Vec::new(),
            flow_shift: 1.0,
            final_sigmas_type: FinalSigmasType::Zero,
            use_dynamic_shifting: false,
            time_shift_type: TimeShiftType::Exponential,
            shift_terminal: None,
            prediction_type: "epsilon".to_owned(),
            predict_x0: true,
            thresholding: None,
            use_flow_sigmas: false,
            use_karras_sigmas: None,
            use_exponential_sigmas: None,
            use_beta_sigmas: None,
            solver_p: None,
        }
    }
}

impl UniPcConfig {
    /// Refuses settings that are out of range or not supported; `field` makes the name an error shows.
    pub(super) fn validate(&self, field: &dyn Fn(&str) -> String) -> Result<()> {
        check_range(
            self.flow_shift,
            field("flow_shift"),
            self.num_train_timesteps,
            field("num_train_timesteps"),
        )?;
        check_terminal(self.shift_terminal, field("shift_terminal"))?;
        if self.solver_order == 0 {
            return Err(Error::setting(
                field("solver_order"),
                0,
                "at least 1 (published folders: 2)",
            ));
        }
        check_flow_prediction(&self.prediction_type, self.use_flow_sigmas, field)?;
        if !self.predict_x0 {
            return Err(Error::setting(field("predict_x0"), false, "true, as flow models need"));
        }
        if let Some(solver) = &self.solver_p {
            return Err(Error::setting(
                field("solver_p"),
                solver,
                "null; other predictors are not supported",
            ));
        }
        let off = [
            ("thresholding", self.thresholding),
            ("use_karras_sigmas", self.use_karras_sigmas),
            ("use_exponential_sigmas", self.use_exponential_sigmas),
            ("use_beta_sigmas", self.use_beta_sigmas),
        ];
        must_be_off(&off, field)
    }

    /// Whether the model's output is the clean sample, not the flow.
    pub(super) fn predicts_sample(&self) -> bool {
        self.prediction_type == SAMPLE
    }

    /// The noise levels of `num_inference_steps` steps.
    pub(super) fn schedule(&self, num_inference_steps: usize, mu: Option<f64>) -> Result<Schedule> {
        let train_steps = f64::from(self.num_train_timesteps);
        let mut sigmas = linspace(1.0, 1.0 / train_steps, num_inference_steps + 1);
        sigmas.truncate(num_inference_steps);
        let mu = if self.use_dynamic_shifting { Some(required_mu(mu)?) } else { None };
        for sigma in &mut sigmas {
            *sigma = match mu {
                Some(mu) => self.time_shift_type.shift(mu, *sigma),
                None => static_shift(self.flow_shift, *sigma),
            };
        }
        if let Some(terminal) = self.shift_terminal.filter(|&terminal| terminal != 0.0) {
            stretch_to_terminal(&mut sigmas, terminal);
        }
        if (sigmas[0] - 1.0).abs() < FIRST_SIGMA_MARGIN {
            sigmas[0] -= FIRST_SIGMA_MARGIN;
        }
        let timesteps = sigmas.iter().map(|&sigma| (sigma * train_steps).trunc() as f32).collect();
        let last = match self.final_sigmas_type {
            FinalSigmasType::Zero => 0.0,
            FinalSigmasType::SigmaMin => sigmas[num_inference_steps - 1],
        };
        let sigmas = sigmas.iter().chain([&last]).map(|&sigma| sigma as f32).collect();
        Ok(Schedule { sigmas, timesteps, method: Method::UniPc(self.clone()) })
    }
}

/// What a UniPC walk remembers between steps.
#[derive(Debug, Default)]
pub(super) struct UniPcHistory {
    /// Clean-sample predictions, newest first, at most `solver_order` of them.
    clean_preds: VecDeque<Tensor>,
    /// The (corrected) sample that the previous step started from, and the order it was taken with.
    last: Option<(Tensor, usize)>,
}

/// The tensors of one exponential-integrator update from level `from` to level `to`.
struct Update<'a> {
    /// Noise levels of the schedule.
    sigmas: &'a [f32],
    /// Index of the level the update starts from; older predictions are at the levels before it.
    from: usize,
    order: usize,
    solver_type: SolverType,
}

impl UniPcHistory {
    /// Corrects `sample` with the new prediction `clean`, then predicts the sample at level `index + 1`.
    pub(super) fn step(
        &mut self,
        config: &UniPcConfig,
        sigmas: &[f32],
        index: usize,
        clean: Tensor,
        sample: &Tensor,
    ) -> Tensor {
        let mut sample = sample.shallow_clone();
        if let Some((last_sample, order)) = self.last.take()
            && !config.disable_corrector.contains(&(index - 1))
        {
            let update = Update { sigmas, from: index - 1, order, solver_type: config.solver_type };
            sample = update.apply(&self.clean_preds, &last_sample, Some(&clean));
        }
        let warm_up = self.clean_preds.len() + 1;
        self.clean_preds.push_front(clean);
        self.clean_preds.truncate(config.solver_order);
        let left = if config.lower_order_final { sigmas.len() - 1 - index } else { usize::MAX };
        let order = config.solver_order.min(left).min(warm_up);
        let update = Update { sigmas, from: index, order, solver_type: config.solver_type };
        let next = update.apply(&self.clean_preds, &sample, None);
        self.last = Some((sample, order));
        next
    }
}

impl Update<'_> {
    /// Moves `x` one level on. `clean_preds` are newest first, the newest made at the starting level. With `arrived`,
    /// the prediction made at the level moved to, this is the corrector; without it the predictor.
    fn apply(
        &self,
        clean_preds: &VecDeque<Tensor>,
        x: &Tensor,
        arrived: Option<&Tensor>,
    ) -> Tensor {
        let newest = &clean_preds[0];
        let (sigma_t, sigma_s) = (self.sigmas[self.from + 1], self.sigmas[self.from]);
        // Limits where lambda has no finite, non-zero step: the whole way to the clean sample, and no way at all.
        if sigma_t == 0.0 {
            return newest.shallow_clone();
        }
        if sigma_t == sigma_s {
            return x.shallow_clone();
        }
        let h = lambda(sigma_t) - lambda(sigma_s);
        let hh = -h;
        let phi_1 = hh.exp_m1();
        let b_h = match self.solver_type {
            SolverType::Bh1 => hh,
            SolverType::Bh2 => phi_1,
        };
        // Position of each older prediction in units of h, and the slope towards it.
        let ratios: Vec<f32> = (1..self.order)
            .map(|j| (lambda(self.sigmas[self.from - j]) - lambda(sigma_s)) / h)
            .collect();
        let slopes = ratios
            .iter()
            .zip(clean_preds.iter().skip(1))
            .map(|(&ratio, pred)| (pred - newest) / f64::from(ratio));
        let rhos = match (arrived, self.order) {
            (None, 1) => Vec::new(),
            (None, 2) | (Some(_), 1) => vec![0.5],
            (None, _) => solve_rhos(&ratios, hh, b_h),
            (Some(_), _) => solve_rhos(&[ratios.as_slice(), &[1.0]].concat(), hh, b_h),
        };
        let mut residual = slopes
            .zip(&rhos)
            .map(|(slope, &rho)| slope * f64::from(rho))
            .reduce(|sum, term| sum + term);
        if let Some(arrived) = arrived {
            let term = (arrived - newest) * f64::from(rhos[self.order - 1]);
            residual = Some(residual.map_or_else(|| term.shallow_clone(), |sum| sum + &term));
        }
        let alpha_t = 1.0 - sigma_t;
        let next = x * f64::from(sigma_t / sigma_s) - newest * f64::from(alpha_t * phi_1);
        match residual {
            Some(residual) => next - residual * f64::from(alpha_t * b_h),
            None => next,
        }
    }
}

/// Solves `sum_j rho_j * ratios_j^(k-1) = b_k`, k = 1..=len, for the weights rho, where `b_k = k! phi_(k+1)(hh) hh / B`.
fn solve_rhos(ratios: &[f32], hh: f32, b_h: f32) -> Vec<f32> {
    let order = ratios.len();
    let mut phi_k = hh.exp_m1() / hh - 1.0;
    let mut factorial = 1.0f32;
    let mut rows = Vec::with_capacity(order);
    for k in 0..order {
        let mut row: Vec<f32> = ratios.iter().map(|ratio| ratio.powi(k as i32)).collect();
        row.push(phi_k * factorial / b_h);
        rows.push(row);
        factorial *= (k + 2) as f32;
        phi_k = phi_k / hh - 1.0 / factorial;
    }
    solve(rows)
}

/// Solves a square linear system given as rows with the right-hand side in the last column, with
/// partial pivoting.
fn solve(mut rows: Vec<Vec<f32>>) -> Vec<f32> {
    let n = rows.len();
    for column in 0..n {
        let pivot = (column..n)
            .max_by(|&a, &b| rows[a][column].abs().total_cmp(&rows[b][column].abs()))
            .unwrap_or(column);
        rows.swap(column, pivot);
        let (done, below) = rows.split_at_mut(column + 1);
        let pivot_row = &done[column];
        for row in below {
            let factor = row[column] / pivot_row[column];
            for (value, pivot_value) in row.iter_mut().zip(pivot_row) {
                *value -= factor * pivot_value;
            }
        }
    }
    let mut solution = vec![0.0f32; n];
    for (i, row) in rows.iter().enumerate().rev() {
        let known: f32 = (i + 1..n).map(|k| row[k] * solution[k]).sum();
        solution[i] = (row[n] - known) / row[i];
    }
    solution
}

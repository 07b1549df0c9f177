// SPDX-License-Identifier: MPL-2.0
//! AdamW with a running average of the weights, whose whole state can be saved and resumed exactly.
//!
//! AdamW follows Loshchilov and Hutter, "Decoupled Weight Decay Regularization" (arXiv 1711.05101).

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use tch::{Kind, Tensor};

use crate::weights::{Checkpoint, safetensors};

/// What one step is made with.
#[derive(Debug, Clone, Copy)]
pub struct Hyper {
    pub betas: (f64, f64),
    pub eps: f64,
    /// Only for tensors of two or more dimensions.
    pub weight_decay: f64,
    /// Largest global norm of the gradients.
    pub clip_norm: f64,
    /// How much of the average one step keeps, once it has warmed up.
    pub ema_decay: f64,
}

impl Default for Hyper {
    fn default() -> Self {
        Self { betas: (0.9, 0.95), eps: 1e-8, weight_decay: 0.01, clip_norm: 1.0, ema_decay: 0.999 }
    }
}

struct Moments {
    parameter: Tensor,
    mean: Tensor,
    square: Tensor,
    ema: Tensor,
}

/// The optimiser: parameters, their moments and their running average.
pub struct AdamW {
    hyper: Hyper,
    step: u64,
    entries: BTreeMap<String, Moments>,
}

impl AdamW {
    /// For leaf tensors by name; moments start at zero, the average at the weights.
    pub fn new(parameters: Vec<(String, Tensor)>, hyper: Hyper) -> Self {
        let _no_grad = tch::no_grad_guard();
        let entries = parameters
            .into_iter()
            .map(|(name, parameter)| {
                let moments = Moments {
                    mean: parameter.zeros_like(),
                    square: parameter.zeros_like(),
                    ema: parameter.detach_copy(),
                    parameter,
                };
                (name, moments)
            })
            .collect();
        Self { hyper, step: 0, entries }
    }

    /// Steps made so far.
    pub fn steps(&self) -> u64 {
        self.step
    }

    /// Elements of all parameters.
    pub fn parameter_count(&self) -> usize {
        self.entries.values().map(|e| e.parameter.numel()).sum()
    }

    /// Makes one step with the gradients of `loss` and clears them; returns their global norm before clipping.
    pub fn step(&mut self, loss: &Tensor, learning_rate: f64) -> f64 {
        loss.backward();
        let _no_grad = tch::no_grad_guard();
        self.step += 1;
        let gradients: BTreeMap<&String, Tensor> = self
            .entries
            .iter()
            .map(|(name, e)| (name, e.parameter.grad()))
            .filter(|(_, grad)| grad.defined())
            .collect();
        let squares: Vec<Tensor> =
            gradients.values().map(|g| g.square().sum(Kind::Float)).collect();
        let norm = Tensor::stack(&squares, 0).sum(Kind::Float).sqrt().double_value(&[]);
        let clip = (self.hyper.clip_norm / (norm + 1e-6)).min(1.0);
        let gradients: Vec<(String, Tensor)> =
            gradients.into_iter().map(|(name, grad)| (name.clone(), grad)).collect();
        if norm.is_finite() {
            for (name, grad) in &gradients {
                self.update(name, &(grad * clip), learning_rate);
            }
        }
        for (_, mut grad) in gradients {
            let _ = grad.zero_();
        }
        norm
    }

    fn update(&mut self, name: &str, grad: &Tensor, learning_rate: f64) {
        let (b1, b2) = self.hyper.betas;
        let step = self.step as f64;
        // The average follows quickly at first, so that early weights do not linger in it.
        let ema_decay = self.hyper.ema_decay.min((1.0 + step) / (10.0 + step));
        let Some(e) = self.entries.get_mut(name) else { return };
        let _ = e.mean.lerp_(grad, 1.0 - b1);
        let _ = e.square.lerp_(&grad.square(), 1.0 - b2);
        let mut denominator = e.square.sqrt();
        let _ = denominator.g_div_scalar_((1.0 - b2.powf(step)).sqrt());
        let _ = denominator.g_add_scalar_(self.hyper.eps);
        if e.parameter.dim() > 1 && self.hyper.weight_decay > 0.0 {
            let _ = e.parameter.g_mul_scalar_(1.0 - learning_rate * self.hyper.weight_decay);
        }
        let mut change = &e.mean / denominator;
        let _ = change.g_mul_scalar_(-learning_rate / (1.0 - b1.powf(step)));
        let _ = e.parameter.g_add_(&change);
        let _ = e.ema.lerp_(&e.parameter, 1.0 - ema_decay);
    }

    /// The running averages by name.
    pub fn averages(&self) -> Vec<(String, Tensor)> {
        self.entries.iter().map(|(name, e)| (name.clone(), e.ema.shallow_clone())).collect()
    }

    /// Starts the averages anew at the weights, after these were set by hand.
    pub fn restart_averages(&mut self) {
        let _no_grad = tch::no_grad_guard();
        for e in self.entries.values_mut() {
            e.ema.copy_(&e.parameter);
        }
    }

    /// Exchanges weights and averages; a second call undoes the first.
    pub fn swap_averages(&mut self) {
        let _no_grad = tch::no_grad_guard();
        for e in self.entries.values_mut() {
            let weights = e.parameter.detach_copy();
            e.parameter.copy_(&e.ema);
            e.ema.copy_(&weights);
        }
    }

    /// Writes weights, moments, averages and the step count.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn save(&self, path: &Path) -> Result<()> {
        let step = Tensor::from_slice(&[self.step as i64]);
        let mut tensors = vec![("step".to_owned(), &step)];
        for (name, e) in &self.entries {
            tensors.push((format!("weight/{name}"), &e.parameter));
            tensors.push((format!("mean/{name}"), &e.mean));
            tensors.push((format!("square/{name}"), &e.square));
            tensors.push((format!("ema/{name}"), &e.ema));
        }
        Ok(safetensors::write(path, tensors)?)
    }

    /// Continues from what [`AdamW::save`] wrote.
    ///
    /// # Errors
    /// When the file is missing or belongs to another model.
    pub fn resume(&mut self, path: &Path) -> Result<()> {
        let _no_grad = tch::no_grad_guard();
        let file = Checkpoint::open_file(path)?;
        for (name, e) in &mut self.entries {
            for (part, tensor) in [
                ("weight", &mut e.parameter),
                ("mean", &mut e.mean),
                ("square", &mut e.square),
                ("ema", &mut e.ema),
            ] {
                let saved = file.raw(&format!("{part}/{name}"))?;
                let (found, expected) = (saved.size(), tensor.size());
                ensure!(
                    found == expected,
                    "{}: {part} of {name} has shape {found:?}, this model's is {expected:?}",
                    path.display()
                );
                tensor.copy_(&saved);
            }
        }
        let step = file.raw("step")?.f_int64_value(&[0]).context("step count")?;
        self.step = u64::try_from(step).context("step count")?;
        Ok(())
    }
}

/// Linear warm-up, then a cosine down to `floor` times the peak at `total`.
pub fn cosine_schedule(step: u64, total: u64, warmup: u64, peak: f64, floor: f64) -> f64 {
    if step < warmup {
        return peak * (step + 1) as f64 / warmup as f64;
    }
    let done = (step - warmup) as f64 / (total.saturating_sub(warmup)).max(1) as f64;
    let cosine = 0.5 * (1.0 + (std::f64::consts::PI * done.min(1.0)).cos());
    peak * (floor + (1.0 - floor) * cosine)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Device;

    #[test]
    fn finds_the_minimum_and_resumes_exactly() {
        tch::manual_seed(1);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state.safetensors");
        let run = |stop: u64, resume: bool| {
            let x = Tensor::zeros([3], (Kind::Float, Device::Cpu)).set_requires_grad(true);
            let mut optimiser = AdamW::new(vec![("x".into(), x.shallow_clone())], Hyper::default());
            if resume {
                optimiser.resume(&path).unwrap();
            }
            while optimiser.steps() < stop {
                let loss = (&x - 2.0).square().sum(Kind::Float);
                optimiser.step(&loss, 0.05);
            }
            optimiser.save(&path).unwrap();
            x
        };
        let whole = run(200, false);
        assert!((&whole - 2.0).abs().max().double_value(&[]) < 0.05);
        let _ = run(90, false);
        let resumed = run(200, true);
        assert_eq!(Vec::<f32>::try_from(whole).unwrap(), Vec::<f32>::try_from(resumed).unwrap());
    }
}

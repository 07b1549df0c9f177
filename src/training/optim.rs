// SPDX-License-Identifier: MPL-2.0
//! AdamW with a running average of the weights, whose whole state can be saved and resumed exactly.
//!
//! All parameters live in two long vectors, of which tensors are views, and so do their gradients: a step is then a few
//! operations on whole vectors, where one for each of some hundred small tensors would keep a GPU waiting for their launches.
//!
//! AdamW follows Loshchilov and Hutter, "Decoupled Weight Decay Regularization" (arXiv 1711.05101).

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use tch::{Device, Kind, Tensor};

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

impl Moments {
    /// A part `[length]` of vectors, a view.
    fn narrow(&self, start: i64, length: i64) -> Self {
        let narrow = |t: &Tensor| t.narrow(0, start, length);
        Self {
            parameter: narrow(&self.parameter),
            mean: narrow(&self.mean),
            square: narrow(&self.square),
            ema: narrow(&self.ema),
        }
    }
}

/// Elements between the starts of tensors are a multiple of this many, as kernels like their operands aligned.
const ALIGNMENT: usize = 16;

/// Parameters in one vector.
struct Group {
    all: Moments,
    /// Whether weights decay.
    decays: bool,
    /// Of all parameters; zeros where there is none, and in the gaps between them.
    gradient: Tensor,
    /// Each parameter with its part of that, a view of its shape.
    parts: Vec<(Tensor, Tensor)>,
}

impl Group {
    /// Moves the data of leaf tensors into one vector, of which they become views.
    fn new(parameters: Vec<(String, Tensor)>, decays: bool) -> (Self, Vec<(String, Moments)>) {
        let options =
            parameters.first().map_or((Kind::Float, Device::Cpu), |(_, p)| (p.kind(), p.device()));
        let padded = |p: &Tensor| p.numel().next_multiple_of(ALIGNMENT) as i64;
        let total: i64 = parameters.iter().map(|(_, p)| padded(p)).sum();
        let zeros = || Tensor::zeros([total], options);
        let all = Moments { parameter: zeros(), mean: zeros(), square: zeros(), ema: zeros() };
        let gradient = zeros();
        let (mut start, mut parts, mut entries) = (0, Vec::new(), Vec::new());
        for (name, mut parameter) in parameters {
            let length = parameter.numel() as i64;
            let part = all.narrow(start, length);
            let view = |t: &Tensor| t.view(parameter.size().as_slice());
            let (mut data, mut ema) = (view(&part.parameter), view(&part.ema));
            data.copy_(&parameter);
            ema.copy_(&parameter);
            let (mean, square) = (view(&part.mean), view(&part.square));
            let gradient = view(&gradient.narrow(0, start, length));
            parameter.set_data(&data);
            start += padded(&parameter);
            parts.push((parameter.shallow_clone(), gradient));
            entries.push((name, Moments { parameter, mean, square, ema }));
        }
        (Self { all, decays, gradient, parts }, entries)
    }

    /// Makes the gradients that backward passes have made parts of the vector, to which later ones then add.
    fn gather_gradients(&mut self) {
        for (parameter, part) in &mut self.parts {
            let mut grad = parameter.grad();
            if grad.defined() && grad.data_ptr() != part.data_ptr() {
                part.copy_(&grad);
                grad.set_data(part);
            }
        }
    }
}

/// The figures of one step.
#[derive(Debug, Clone, Copy)]
struct Update {
    betas: (f64, f64),
    eps: f64,
    /// Factor of the weights of matrices.
    keep: f64,
    /// Square root of the bias correction of the second moment.
    square_scale: f64,
    /// Learning rate with the bias correction of the first moment.
    rate: f64,
    ema_decay: f64,
}

impl Update {
    fn new(hyper: &Hyper, step: u64, learning_rate: f64) -> Self {
        let step = step as f64;
        let (b1, b2) = hyper.betas;
        Self {
            betas: hyper.betas,
            eps: hyper.eps,
            keep: 1.0 - learning_rate * hyper.weight_decay,
            square_scale: (1.0 - b2.powf(step)).sqrt(),
            rate: learning_rate / (1.0 - b1.powf(step)),
            // The average follows quickly at first, so that early weights do not linger in it.
            ema_decay: hyper.ema_decay.min((1.0 + step) / (10.0 + step)),
        }
    }

    /// Moves parameters, given as vectors, by their gradient.
    fn apply(&self, e: &mut Moments, grad: &Tensor, decays: bool) {
        let _no_grad = tch::no_grad_guard();
        let _ = e.mean.lerp_(grad, 1.0 - self.betas.0);
        let _ = e.square.lerp_(&grad.square(), 1.0 - self.betas.1);
        let mut change = e.square.sqrt();
        let _ = change.g_div_scalar_(self.square_scale);
        let _ = change.g_add_scalar_(self.eps);
        let _ = change.reciprocal_();
        let _ = change.g_mul_(&e.mean);
        if decays && self.keep < 1.0 {
            let _ = e.parameter.g_mul_scalar_(self.keep);
        }
        let _ = change.g_mul_scalar_(-self.rate);
        let _ = e.parameter.g_add_(&change);
        let _ = e.ema.lerp_(&e.parameter, 1.0 - self.ema_decay);
    }
}

/// The optimiser: parameters, their moments and their running average.
pub struct AdamW {
    hyper: Hyper,
    step: u64,
    threads: usize,
    groups: [Group; 2],
    /// Views of the groups' vectors.
    entries: BTreeMap<String, Moments>,
}

impl AdamW {
    /// For leaf tensors of one kind and device by name, whose data moves; moments start at zero, the average at the weights.
    pub fn new(parameters: Vec<(String, Tensor)>, hyper: Hyper) -> Self {
        let _no_grad = tch::no_grad_guard();
        let (matrices, others) = parameters.into_iter().partition(|(_, p)| p.dim() > 1);
        let (matrices, mut entries) = Group::new(matrices, true);
        let (others, rest) = Group::new(others, false);
        entries.extend(rest);
        Self {
            hyper,
            step: 0,
            threads: 1,
            groups: [matrices, others],
            entries: entries.into_iter().collect(),
        }
    }

    /// Steps made so far.
    pub fn steps(&self) -> u64 {
        self.step
    }

    /// Elements of all parameters.
    pub fn parameter_count(&self) -> usize {
        self.entries.values().map(|e| e.parameter.numel()).sum()
    }

    /// Threads that share the work of a step.
    pub fn set_threads(&mut self, threads: usize) {
        self.threads = threads.max(1);
    }

    /// Makes one step with the gradients that backward passes have left and clears them; returns their global norm
    /// before clipping. A step whose gradients are not finite changes nothing but the count.
    pub fn step(&mut self, learning_rate: f64) -> f64 {
        self.step += 1;
        let update = Update::new(&self.hyper, self.step, learning_rate);
        let _no_grad = tch::no_grad_guard();
        for group in &mut self.groups {
            group.gather_gradients();
        }
        let squares = self.groups.each_ref().map(|group| group.gradient.dot(&group.gradient));
        let norm = (&squares[0] + &squares[1]).sqrt().double_value(&[]);
        let clip = (self.hyper.clip_norm / (norm + 1e-6)).min(1.0);
        for group in &mut self.groups {
            if norm.is_finite() {
                if clip < 1.0 {
                    let _ = group.gradient.g_mul_scalar_(clip);
                }
                share(group, &update, self.threads);
            }
            let _ = group.gradient.zero_();
        }
        norm
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

    /// Takes over the weights of what [`AdamW::save`] wrote; moments, averages and steps begin anew. Parameters whose names begin
    /// with `optional`, if anything, stay as they are where the file has none.
    ///
    /// # Errors
    /// As [`AdamW::resume`].
    pub fn start_from(&mut self, path: &Path, optional: Option<&str>) -> Result<()> {
        self.take(path, optional)?;
        let _no_grad = tch::no_grad_guard();
        for e in self.entries.values_mut() {
            let _ = e.mean.zero_();
            let _ = e.square.zero_();
        }
        self.restart_averages();
        self.step = 0;
        Ok(())
    }

    /// Continues from what [`AdamW::save`] wrote.
    ///
    /// # Errors
    /// When the file is missing or belongs to another model.
    pub fn resume(&mut self, path: &Path) -> Result<()> {
        self.take(path, None)
    }

    /// Takes over all of a state, but for parameters that begin with `optional` and are not in it.
    fn take(&mut self, path: &Path, optional: Option<&str>) -> Result<()> {
        let _no_grad = tch::no_grad_guard();
        let file = Checkpoint::open_file(path)?;
        for (name, e) in &mut self.entries {
            let is_optional = optional.is_some_and(|prefix| name.starts_with(prefix));
            if is_optional && file.shape(&format!("weight/{name}")).is_none() {
                continue;
            }
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

/// Applies an update to a group, a share of it on each of so many threads.
fn share(group: &Group, update: &Update, threads: usize) {
    let grad = &group.gradient;
    let total = grad.numel();
    let length = total.div_ceil(threads).max(1);
    let mut parts: Vec<(Moments, Tensor)> = (0..total)
        .step_by(length)
        .map(|start| {
            let (start, length) = (start as i64, length.min(total - start) as i64);
            (group.all.narrow(start, length), grad.narrow(0, start, length))
        })
        .collect();
    if let [(moments, grad)] = parts.as_mut_slice() {
        return update.apply(moments, grad, group.decays);
    }
    let decays = group.decays;
    std::thread::scope(|scope| {
        for (moments, grad) in &mut parts {
            scope.spawn(move || update.apply(moments, grad, decays));
        }
    });
}

/// The factor of the learning rate at a step: up over `warmup` steps, then 1, then down to 0 in a straight line over the last
/// `decay` steps (Hagele et al., arXiv 2405.18392), so that a run can be ended, or gone on with, at any point.
pub fn trapezoid_schedule(step: u64, total: u64, warmup: u64, decay: u64) -> f64 {
    let up = (step + 1) as f64 / warmup.max(1) as f64;
    let down = total.saturating_sub(step) as f64 / decay.max(1) as f64;
    up.min(down).min(1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

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
                loss.backward();
                optimiser.step(0.05);
            }
            optimiser.save(&path).unwrap();
            x
        };
        let whole = run(200, false);
        assert!((&whole - 2.0).abs().max().double_value(&[]) < 0.05);
        let _ = run(90, false);
        let mut other = AdamW::new(
            vec![("x".into(), Tensor::zeros([3], (Kind::Float, Device::Cpu)))],
            Hyper::default(),
        );
        other.start_from(&path, None).unwrap();
        assert_eq!(other.steps(), 0);
        let taken = other.averages().remove(0).1.double_value(&[0]);
        assert!(taken > 0.5, "{taken}");
        let resumed = run(200, true);
        assert_eq!(Vec::<f32>::try_from(whole).unwrap(), Vec::<f32>::try_from(resumed).unwrap());
    }

    /// Whatever a model made of its parameters when it was built would stay behind when the optimiser moves their data.
    #[test]
    fn models_follow_their_parameters() {
        use crate::models::autoencoder_kl_wan::{AutoencoderKLWan, AutoencoderKLWanConfig};
        use crate::nn::conv3d::FeatureCaches;
        use crate::weights::{Parameters, Source};

        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/default/vae");
        let config = std::fs::read_to_string(folder.join("config.json")).unwrap();
        let config: AutoencoderKLWanConfig = serde_json::from_str(&config).unwrap();
        let weights = Checkpoint::open(&folder, "diffusion_pytorch_model").unwrap();
        let source = Source::Trainable(Parameters::starting_from(weights));
        let model =
            || AutoencoderKLWan::new(&source.weights(Kind::Float, Device::Cpu), &config).unwrap();
        let video = crate::pipeline::torch_noise(1, &[1, 3, 5, 32, 32]);
        let made = |vae: &AutoencoderKLWan| {
            let mean = vae.encode(&video, &mut FeatureCaches::default()).mean;
            vae.decode_unclamped(&mean, &mut FeatureCaches::default())
        };
        let trained = model();
        let named = source.parameters().unwrap().named();
        let mut optimiser = AdamW::new(named, Hyper::default());
        let before = made(&trained).detach();
        made(&trained).square().mean(Kind::Float).backward();
        optimiser.step(1e-2);
        let _no_grad = tch::no_grad_guard();
        let off = |a: &Tensor, b: &Tensor| (a - b).abs().max().double_value(&[]);
        assert!(off(&made(&trained), &before) > 1e-2);
        assert!(off(&made(&trained), &made(&model())) < 1e-6);
    }
}

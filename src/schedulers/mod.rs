// SPDX-License-Identifier: MPL-2.0
//! Noise schedules and the solvers that walk along them.
//!
//! A [`SchedulerConfig`] is read from `scheduler_config.json`; [`SchedulerConfig::set_timesteps`] turns it into a
//! [`Schedule`], which is plain data; [`Schedule::start`] makes a [`Solver`], which holds the history of one
//! generation. Everything follows the flow convention: `x_sigma = (1 - sigma) * x_0 + sigma * noise`, with the model
//! predicting `v = noise - x_0`, or `x_0` itself where the folder's `prediction_type` is `sample`. Sigmas run from
//! about 1 (noise) down to 0 (clean).
//!
//! The arithmetic follows diffusers: schedules are built in float64 and rounded to float32, and the solvers compute
//! their coefficients in float32 from the rounded sigmas.

mod dpmsolver;
mod flow_match_euler;
mod unipc;

use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::DeserializeOwned;
use tch::Tensor;

use crate::error::{Error, Result};

pub use dpmsolver::{AlgorithmType, DpmSolverConfig, DpmSolverType};
pub use flow_match_euler::FlowMatchEulerConfig;
use unipc::UniPcHistory;
pub use unipc::{SolverType, UniPcConfig};

/// File name of a scheduler's configuration inside its folder.
const CONFIG_FILE: &str = "scheduler_config.json";

/// A checked scheduler configuration.
#[derive(Debug, Clone, PartialEq)]
pub enum SchedulerConfig {
    /// `UniPCMultistepScheduler`, what published Wan folders name.
    UniPc(UniPcConfig),
    /// `DPMSolverMultistepScheduler`.
    DpmSolver(DpmSolverConfig),
    /// `FlowMatchEulerDiscreteScheduler`.
    FlowMatchEuler(FlowMatchEulerConfig),
}

impl SchedulerConfig {
    /// Reads `scheduler_config.json` from the folder `scheduler` of a pipeline.
    ///
    /// # Errors
    /// An unreadable or malformed file, an unknown scheduler class, or a setting that is not supported.
    pub fn from_folder(folder: &Path) -> Result<Self> {
        let path = folder.join(CONFIG_FILE);
        let text = std::fs::read_to_string(&path).map_err(|source| Error::io(&path, source))?;
        let value: serde_json::Value = serde_json::from_str(&text)
            .map_err(|error| Error::checkpoint(&path, format!("not valid JSON: {error}")))?;
        let class_name = value
            .get("_class_name")
            .and_then(serde_json::Value::as_str)
            .ok_or_else(|| {
                Error::checkpoint(&path, "no `_class_name` that says which scheduler this is")
            })?
            .to_owned();
        Self::from_json(&path, &class_name, value)
    }

    /// Whether the model's output is the clean sample, not the flow.
    pub fn predicts_sample(&self) -> bool {
        match self {
            Self::UniPc(config) => config.predicts_sample(),
            Self::DpmSolver(config) => config.predicts_sample(),
            Self::FlowMatchEuler(_) => false,
        }
    }

    /// How far the noise levels are shifted towards noise; 1 for not at all.
    pub fn shift(&self) -> f64 {
        match self {
            Self::UniPc(config) => config.flow_shift,
            Self::DpmSolver(config) => config.flow_shift,
            Self::FlowMatchEuler(config) => config.shift,
        }
    }

    /// Checks the settings `value` of the scheduler `class_name`; `path` is what errors name.
    ///
    /// # Errors
    /// An unknown class, a value of the wrong type, or a setting that is not supported.
    pub fn from_json(path: &Path, class_name: &str, value: serde_json::Value) -> Result<Self> {
        let field = |name: &str| format!("{}: {name}", path.display());
        match class_name {
            "UniPCMultistepScheduler" => {
                let config: UniPcConfig = parse(path, value)?;
                config.validate(&field)?;
                Ok(Self::UniPc(config))
            }
            "DPMSolverMultistepScheduler" => {
                let config: DpmSolverConfig = parse(path, value)?;
                config.validate(&field)?;
                Ok(Self::DpmSolver(config))
            }
            "FlowMatchEulerDiscreteScheduler" => {
                let config: FlowMatchEulerConfig = parse(path, value)?;
                config.validate(&field)?;
                Ok(Self::FlowMatchEuler(config))
            }
            other => Err(Error::setting(
                field("_class_name"),
                other,
                "UniPCMultistepScheduler, DPMSolverMultistepScheduler or FlowMatchEulerDiscreteScheduler",
            )),
        }
    }

    /// Lays out `num_inference_steps` steps; `mu` is the shift of folders with `use_dynamic_shifting`, ignored by
    /// others.
    ///
    /// # Errors
    /// No steps, a missing `mu`, or settings that leave no usable schedule for this number of steps.
    pub fn set_timesteps(&self, num_inference_steps: usize, mu: Option<f64>) -> Result<Schedule> {
        if num_inference_steps == 0 {
            return Err(Error::setting("num_inference_steps", 0, "at least 1"));
        }
        let schedule = match self {
            Self::UniPc(config) => config.schedule(num_inference_steps, mu)?,
            Self::DpmSolver(config) => config.schedule(num_inference_steps),
            Self::FlowMatchEuler(config) => config.schedule(num_inference_steps, mu)?,
        };
        match schedule.sigmas.iter().find(|sigma| !sigma.is_finite()) {
            None => Ok(schedule),
            Some(sigma) => Err(Error::setting(
                "scheduler",
                format!("a noise level of {sigma} with {num_inference_steps} steps"),
                "finite noise levels; use more steps, or check the shift settings of the scheduler",
            )),
        }
    }
}

/// Which solver a schedule is walked with.
#[derive(Debug, Clone, PartialEq)]
enum Method {
    Euler,
    UniPc(UniPcConfig),
    DpmSolver(DpmSolverConfig),
}

/// The noise levels and model timesteps of one generation: plain data, shared by any number of solvers.
#[derive(Debug, Clone, PartialEq)]
pub struct Schedule {
    /// Noise levels in [0, 1], one per step and the final one; never increasing.
    pub sigmas: Vec<f32>,
    /// What the transformer is told at each step, in [0, 1000]; one per step.
    pub timesteps: Vec<f32>,
    method: Method,
}

impl Schedule {
    /// A schedule over the given noise levels, for distilled few-step models: `sigmas` without the final zero, which
    /// is added. Timesteps are `1000 * sigma` and steps are Euler steps.
    ///
    /// # Errors
    /// An empty list, a level outside (0, 1], or a list that does not fall strictly.
    pub fn from_sigmas(sigmas: &[f64]) -> Result<Self> {
        let in_range = sigmas.iter().all(|&sigma| sigma > 0.0 && sigma <= 1.0);
        let falling = sigmas.windows(2).all(|pair| pair[0] > pair[1]);
        if sigmas.is_empty() || !in_range || !falling {
            return Err(Error::setting(
                "sigmas",
                format!("{sigmas:?}"),
                "one or more strictly falling noise levels, above 0 and at most 1",
            ));
        }
        let timesteps = sigmas.iter().map(|&sigma| (sigma * 1000.0) as f32).collect();
        let sigmas = sigmas.iter().map(|&sigma| sigma as f32).chain([0.0]).collect();
        Ok(Self { sigmas, timesteps, method: Method::Euler })
    }

    /// The same walk from the noise level `level` on: a first step from there to the next lower level of this schedule. Above
    /// its highest level this is the whole schedule.
    ///
    /// # Errors
    /// A level outside (0, 1].
    pub fn starting_at(&self, level: f64) -> Result<Self> {
        /// A shorter first step would only cost time.
        const SHORTEST: f32 = 1e-3;
        if !(level > 0.0 && level <= 1.0) {
            return Err(Error::setting("noise level", level, "above 0 and at most 1"));
        }
        let level = level as f32;
        if level >= self.sigmas[0] {
            return Ok(self.clone());
        }
        let lower = self.sigmas.iter().position(|&sigma| sigma < level - SHORTEST);
        let rest = lower.unwrap_or(self.len()).min(self.len());
        Ok(Self {
            sigmas: std::iter::once(level).chain(self.sigmas[rest..].iter().copied()).collect(),
            timesteps: std::iter::once(level * 1000.0)
                .chain(self.timesteps[rest..].iter().copied())
                .collect(),
            method: self.method.clone(),
        })
    }

    /// The same walk, stretched so that its last step begins at the noise level `terminal` where it would begin above that, as
    /// `shift_terminal` of diffusers does wherever it is set. One or two steps, which have no level between noise and the last one,
    /// stay as they are.
    pub fn with_terminal_at_most(&self, terminal: f64) -> Self {
        let mut levels: Vec<f64> =
            self.sigmas[..self.len()].iter().map(|&sigma| f64::from(sigma)).collect();
        if levels.len() < 3 || levels[levels.len() - 1] <= terminal {
            return self.clone();
        }
        stretch_to_terminal(&mut levels, terminal);
        self.with_levels(&levels, self.sigmas[self.len()])
    }

    /// As many steps over other noise levels: `levels` are those at which the steps of a walk of their number begin, and between
    /// them, and from the last one to 0, they go in straight lines; none is above this schedule's highest.
    pub fn over_levels(&self, levels: &[f64]) -> Self {
        let (highest, last) = (f64::from(self.sigmas[0]), self.sigmas[self.len()]);
        let level = |index: usize| levels.get(index).map_or(0.0, |level| level.min(highest));
        let at = |step: usize| {
            let place = step as f64 * levels.len() as f64 / self.len() as f64;
            let (index, rest) = (place as usize, place.fract());
            level(index) * (1.0 - rest) + level(index + 1) * rest
        };
        let levels: Vec<f64> = (0..self.len()).map(at).collect();
        self.with_levels(&levels, last)
    }

    /// The same walk over other noise levels, one for each step, and the final one.
    fn with_levels(&self, levels: &[f64], last: f32) -> Self {
        Self {
            timesteps: levels.iter().map(|level| (level * 1000.0) as f32).collect(),
            sigmas: levels.iter().map(|&level| level as f32).chain([last]).collect(),
            method: self.method.clone(),
        }
    }

    /// Number of steps.
    pub fn len(&self) -> usize {
        self.timesteps.len()
    }

    /// Whether there is no step at all; never so for a schedule made by this module.
    pub fn is_empty(&self) -> bool {
        self.timesteps.is_empty()
    }

    /// Noise level at the start of step `index`; `index == len()` is the final level.
    ///
    /// # Panics
    /// When `index` is past the final level.
    pub fn sigma(&self, index: usize) -> f32 {
        self.sigmas[index]
    }

    /// A solver with no history whose first step is `begin_index`.
    pub fn start(&self, begin_index: usize) -> Solver {
        Solver {
            schedule: self.clone(),
            index: begin_index,
            history: UniPcHistory::default(),
            earlier: None,
        }
    }

    /// The step whose timestep is exactly `timestep`.
    ///
    /// Where several steps round to the same timestep this is the second of them, as in diffusers: runs that start
    /// from an image or a video find their first step by this search.
    ///
    /// # Errors
    /// No step has that timestep.
    pub fn index_for_timestep(&self, timestep: f32) -> Result<usize> {
        let mut matches = (0..self.len()).filter(|&index| self.timesteps[index] == timestep);
        let first = matches.next();
        matches.next().or(first).ok_or_else(|| {
            Error::setting("timestep", timestep, format!("one of {:?}", self.timesteps))
        })
    }

    /// `(1 - sigma) * clean + sigma * noise` at the start of step `index`; both tensors of one shape.
    pub fn add_noise(&self, clean: &Tensor, noise: &Tensor, index: usize) -> Tensor {
        let sigma = self.sigmas[index];
        clean * f64::from(1.0 - sigma) + noise * f64::from(sigma)
    }

    /// The clean sample that `model_output` (a flow, or that sample itself) points to from `sample` at the start of
    /// step `index`.
    pub fn predict_clean(&self, model_output: &Tensor, sample: &Tensor, index: usize) -> Tensor {
        let model_output = model_output.to_kind(sample.kind());
        match &self.method {
            Method::UniPc(config) if config.predicts_sample() => model_output,
            Method::DpmSolver(config) if config.predicts_sample() => model_output,
            _ => sample - model_output * f64::from(self.sigmas[index]),
        }
    }
}

/// One walk along a schedule: the step reached and the history that multistep methods need.
#[derive(Debug)]
pub struct Solver {
    schedule: Schedule,
    index: usize,
    history: UniPcHistory,
    /// The clean sample that DPM-Solver++ was told of at the step before.
    earlier: Option<Tensor>,
}

impl Solver {
    /// The next step; equals the schedule's length when the walk is over.
    pub fn index(&self) -> usize {
        self.index
    }

    /// The schedule that is walked.
    pub fn schedule(&self) -> &Schedule {
        &self.schedule
    }

    /// What the transformer is told at the next step; `None` when the walk is over.
    pub fn timestep(&self) -> Option<f32> {
        self.schedule.timesteps.get(self.index).copied()
    }

    /// Takes one step from `sample` by `model_output` and returns the sample at the next noise level.
    ///
    /// Any shape will do; `model_output` (the flow, or the clean sample where the folder's `prediction_type` says so) is
    /// taken to the kind of `sample`, which the result keeps. Stochastic solvers ask `noise`, by the number of the step, for
    /// normal noise of that shape, another one for each step.
    ///
    /// # Panics
    /// When the walk is already over.
    pub fn step(
        &mut self,
        model_output: &Tensor,
        sample: &Tensor,
        noise: &dyn Fn(u32) -> Tensor,
    ) -> Tensor {
        let (schedule, index) = (&self.schedule, self.index);
        assert!(index < schedule.len(), "step {index} of a schedule of {} steps", schedule.len());
        let next = match &schedule.method {
            Method::Euler => flow_match_euler::step(&schedule.sigmas, index, model_output, sample),
            Method::UniPc(config) => {
                let clean = schedule.predict_clean(model_output, sample, index);
                self.history.step(config, &schedule.sigmas, index, clean, sample)
            }
            Method::DpmSolver(config) => {
                let clean = schedule.predict_clean(model_output, sample, index);
                let earlier = self.earlier.replace(clean.shallow_clone());
                let (at, fresh) = ((schedule.sigmas.as_slice(), index), || noise(index as u32));
                dpmsolver::step(config, at, (&clean, earlier.as_ref()), sample, &fresh)
            }
        };
        self.index += 1;
        next
    }
}

/// Reads one scheduler's settings out of its JSON object.
fn parse<T: DeserializeOwned>(path: &Path, value: serde_json::Value) -> Result<T> {
    serde_json::from_value(value)
        .map_err(|error| Error::checkpoint(PathBuf::from(path), error.to_string()))
}

/// How folders with `use_dynamic_shifting` bend the noise levels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TimeShiftType {
    /// The shift factor is `exp(mu)`.
    #[default]
    Exponential,
    /// The shift factor is `mu`.
    Linear,
}

impl TimeShiftType {
    /// Bends `sigma` in (0, 1] by `mu`.
    fn shift(self, mu: f64, sigma: f64) -> f64 {
        let factor = match self {
            Self::Exponential => mu.exp(),
            Self::Linear => mu,
        };
        factor / (factor + (1.0 / sigma - 1.0))
    }
}

/// The `prediction_type` of models whose output is the clean sample itself.
const SAMPLE: &str = "sample";

/// Refuses settings of solvers that are for other than flow models, or ones that predict neither flow nor clean sample.
fn check_flow_prediction(
    prediction_type: &str,
    use_flow_sigmas: bool,
    field: &dyn Fn(&str) -> String,
) -> Result<()> {
    if !["flow_prediction", SAMPLE].contains(&prediction_type) {
        let name = field("prediction_type");
        return Err(Error::setting(name, prediction_type, "flow_prediction or sample"));
    }
    if !use_flow_sigmas {
        return Err(Error::setting(field("use_flow_sigmas"), false, "true, as flow models need"));
    }
    Ok(())
}

/// Half the logarithm of the signal-to-noise ratio at noise level `sigma`.
fn lambda(sigma: f32) -> f32 {
    (1.0 - sigma).ln() - sigma.ln()
}

/// The static shift of flow models: more steps at high noise for `shift` above 1.
fn static_shift(shift: f64, sigma: f64) -> f64 {
    shift * sigma / (1.0 + (shift - 1.0) * sigma)
}

/// Stretches falling noise levels so that the last one becomes `terminal`; 1 stays 1.
fn stretch_to_terminal(sigmas: &mut [f64], terminal: f64) {
    let Some(&last) = sigmas.last() else { return };
    let scale = (1.0 - last) / (1.0 - terminal);
    for sigma in sigmas {
        *sigma = 1.0 - (1.0 - *sigma) / scale;
    }
}

/// `num` evenly spaced values from `start` to `end`, both included, rounded as numpy rounds them.
fn linspace(start: f64, end: f64, num: usize) -> Vec<f64> {
    if num == 1 {
        return vec![start];
    }
    let step = (end - start) / (num - 1) as f64;
    let mut values: Vec<f64> = (0..num).map(|i| i as f64 * step + start).collect();
    values[num - 1] = end;
    values
}

/// `mu`, or the error that says which folders need it.
fn required_mu(mu: Option<f64>) -> Result<f64> {
    mu.ok_or_else(|| {
        Error::setting(
            "mu",
            "no value",
            "a number, since the scheduler has use_dynamic_shifting set",
        )
    })
}

/// Refuses settings that are switched on but not supported; older folders write null for off.
fn must_be_off(settings: &[(&str, Option<bool>)], field: &dyn Fn(&str) -> String) -> Result<()> {
    match settings.iter().find(|(_, on)| *on == Some(true)) {
        None => Ok(()),
        Some((name, _)) => {
            Err(Error::setting(field(name), true, "false; this variant is not supported"))
        }
    }
}

/// Refuses shifts and step counts that no schedule can be made from.
fn check_range(
    shift: f64,
    shift_name: String,
    num_train_timesteps: u32,
    steps_name: String,
) -> Result<()> {
    if !(shift.is_finite() && shift > 0.0) {
        return Err(Error::setting(shift_name, shift, "a finite number above 0"));
    }
    if num_train_timesteps == 0 {
        return Err(Error::setting(steps_name, 0, "at least 1 (published folders: 1000)"));
    }
    Ok(())
}

/// Refuses a terminal noise level outside [0, 1).
fn check_terminal(terminal: Option<f64>, name: String) -> Result<()> {
    match terminal {
        Some(value) if !(0.0..1.0).contains(&value) => Err(Error::setting(
            name,
            value,
            "null, or a noise level from 0 up to but not including 1",
        )),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests;

// SPDX-License-Identifier: MPL-2.0
//! The cases of a golden folder, by kind, computed with the engine.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use gstdit::models::autoencoder_kl_wan::Tiling;
use gstdit::models::transformer_wan::{AttentionPattern, Timestep, TransformerInput};
use gstdit::nn::attention::KvAccess;
use gstdit::nn::conv3d::FeatureCaches;
use gstdit::pipeline::{
    Denoiser, FolderInfo, Guidance, Known, Pipeline, Prompts, Window, begin_index,
};
use gstdit::schedulers::{Schedule, SchedulerConfig};
use gstdit::torch::{Precision, guarded};
use gstdit::weights::Checkpoint;
use serde::Deserialize;
use serde_json::{Value, json};
use tch::{Device, Kind, Tensor};

/// One thing the reference computed.
#[derive(Debug, Clone, Deserialize)]
pub struct Case {
    pub name: String,
    pub kind: String,
    #[serde(default)]
    pub params: Value,
    #[serde(default)]
    pub outputs: Vec<String>,
}

impl Case {
    fn key(&self, suffix: &str) -> String {
        format!("{}.{suffix}", self.name)
    }

    fn number(&self, name: &str) -> Option<f64> {
        self.params.get(name).and_then(Value::as_f64)
    }

    fn count(&self, name: &str) -> Result<usize> {
        let value = self.params.get(name).and_then(Value::as_u64);
        Ok(value.with_context(|| format!("no whole number `{name}` in params"))? as usize)
    }

    fn text(&self, name: &str) -> &str {
        self.params.get(name).and_then(Value::as_str).unwrap_or_default()
    }

    fn wants(&self, suffix: &str) -> bool {
        self.outputs.contains(&self.key(suffix))
    }

    fn max_sequence_length(&self) -> i64 {
        self.number("max_sequence_length").unwrap_or(512.0) as i64
    }
}

/// A folder of goldens, what has been computed, and the models once a case has needed them.
pub struct Runner {
    folder: PathBuf,
    cases: Vec<Case>,
    golden: Checkpoint,
    pipeline: Option<Pipeline>,
    pub results: BTreeMap<String, Tensor>,
}

impl Runner {
    /// Reads `golden.json` and maps `golden.safetensors`.
    pub fn open(folder: &Path) -> Result<Self> {
        #[derive(Deserialize)]
        struct Index {
            cases: Vec<Case>,
        }
        let path = folder.join("golden.json");
        let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        let index: Index =
            serde_json::from_str(&text).with_context(|| path.display().to_string())?;
        Ok(Self {
            golden: Checkpoint::open_file(&folder.join("golden.safetensors"))?,
            folder: folder.to_owned(),
            cases: index.cases,
            pipeline: None,
            results: BTreeMap::new(),
        })
    }

    /// All cases.
    pub fn cases(&self) -> &[Case] {
        &self.cases
    }

    /// Computes a case; false if its kind is not known.
    pub fn run(&mut self, case: &Case) -> Result<bool> {
        let results = match case.kind.as_str() {
            "scheduler" => guarded(|| Ok(self.scheduler(case)))??,
            "add_noise" => guarded(|| Ok(self.add_noise(case)))??,
            "text" | "vae_encode" | "vae_decode" | "vae_decode_tiled" | "transformer" | "t2v"
            | "i2v" | "v2v" => {
                let pipeline = match self.pipeline.take() {
                    Some(pipeline) => pipeline,
                    None => load(&self.folder)?,
                };
                let results = guarded(|| Ok(self.with_models(case, &pipeline)))?;
                self.pipeline = Some(pipeline);
                results?
            }
            _ => return Ok(false),
        };
        for (suffix, tensor) in results {
            let key = case.key(suffix);
            ensure!(!case.outputs.is_empty(), "no outputs listed");
            self.results.insert(key, tensor);
        }
        Ok(true)
    }

    fn with_models(&self, case: &Case, pipeline: &Pipeline) -> Result<Outputs> {
        match case.kind.as_str() {
            "text" => self.text(case, pipeline),
            "vae_encode" => self.vae_encode(case, pipeline),
            "vae_decode" | "vae_decode_tiled" => self.vae_decode(case, pipeline),
            "transformer" => self.transformer(case, pipeline),
            "i2v" => self.image_to_video(case, pipeline),
            "v2v" => self.video_to_video(case, pipeline),
            _ => self.text_to_video(case, pipeline),
        }
    }

    fn input(&self, case: &Case, suffix: &str) -> Result<Tensor> {
        Ok(self.golden.raw(&case.key(suffix))?)
    }

    fn optional_input(&self, case: &Case, suffix: &str) -> Option<Tensor> {
        self.golden.raw(&case.key(suffix)).ok()
    }

    fn scheduler(&self, case: &Case) -> Result<Outputs> {
        let class = case.text("scheduler");
        let config = scheduler_config(class, case.params["config"].clone())?;
        let schedule = config.set_timesteps(case.count("steps")?, case.number("mu"))?;
        let start = case.count("start").unwrap_or(0);
        let steps = schedule.len() - start - case.count("drop_last").unwrap_or(0);
        let mut sample = self.input(case, "sample")?;
        let flow_preds = self.input(case, "model_outputs")?;
        let mut solver = schedule.start(start);
        let trajectory: Vec<Tensor> = (0..steps)
            .map(|i| {
                sample = solver.step(&flow_preds.get(i as i64), &sample);
                sample.shallow_clone()
            })
            .collect();
        let timesteps = Tensor::from_slice(&schedule.timesteps);
        let whole = matches!(config, SchedulerConfig::UniPc(_));
        let timesteps = if whole { timesteps.to_kind(Kind::Int64) } else { timesteps };
        Ok(vec![
            ("sigmas", Tensor::from_slice(&schedule.sigmas)),
            ("timesteps", timesteps),
            ("trajectory", Tensor::stack(&trajectory, 0)),
        ])
    }

    fn add_noise(&self, case: &Case) -> Result<Outputs> {
        let shift = case.number("shift").context("no `shift` in params")?;
        let config = if case.name.contains("unipc") {
            scheduler_config("UniPCMultistepScheduler", json!({ "flow_shift": shift }))?
        } else {
            scheduler_config("FlowMatchEulerDiscreteScheduler", json!({ "shift": shift }))?
        };
        let schedule = config.set_timesteps(case.count("steps")?, None)?;
        let (clean, noise) = (self.input(case, "clean")?, self.input(case, "noise")?);
        Ok(vec![("noisy", schedule.add_noise(&clean, &noise, case.count("index")?))])
    }

    fn text(&self, case: &Case, pipeline: &Pipeline) -> Result<Outputs> {
        let length = self.input(case, "mask")?.sum(Kind::Int64).int64_value(&[]);
        let ids = self.input(case, "ids")?.flatten(0, -1).narrow(0, 0, length);
        let ids: Vec<i64> = ids.try_into()?;
        Ok(vec![("embeds", pipeline.text_encoder().encode(&ids, case.max_sequence_length()))])
    }

    fn vae_encode(&self, case: &Case, pipeline: &Pipeline) -> Result<Outputs> {
        let video = whole_chunks(&self.input(case, "video")?, pipeline);
        let latents = pipeline.vae().encode(&video, &mut FeatureCaches::default());
        Ok(vec![("mode", latents.mean), ("logvar", latents.logvar)])
    }

    fn vae_decode(&self, case: &Case, pipeline: &Pipeline) -> Result<Outputs> {
        let (latents, vae) = (self.input(case, "latents")?, pipeline.vae());
        let video = if case.kind == "vae_decode" {
            vae.decode(&latents, &mut FeatureCaches::default())
        } else {
            let (min, stride) = (case.count("tile_min")? as i64, case.count("tile_stride")? as i64);
            vae.decode_tiled(&latents, Tiling { min, stride }, &mut Vec::new())
        };
        Ok(vec![("video", video)])
    }

    fn transformer(&self, case: &Case, pipeline: &Pipeline) -> Result<Outputs> {
        let second =
            case.text("component") == "transformer_2" || case.name.starts_with("transformer_2");
        let index = usize::from(second);
        let model =
            pipeline.transformers().get(index).context("the folder has no transformer_2")?;
        let hidden_states = self.input(case, "hidden_states")?;
        let timestep = self.input(case, "timestep")?.to_kind(Kind::Float);
        let image = self.optional_input(case, "encoder_hidden_states_image");
        let context = model.context(&self.input(case, "encoder_hidden_states")?, image.as_ref());
        let s = hidden_states.size();
        let layout = model.layout([s[2], s[3], s[4]], 0, AttentionPattern::Full);
        let timestep = match timestep.dim() {
            2 => Timestep::PerToken(&timestep),
            _ => Timestep::PerClip(&timestep),
        };
        let input = TransformerInput {
            hidden_states: &hidden_states,
            timestep,
            context: &context,
            layout: &layout,
            kv: KvAccess::None,
        };
        Ok(vec![("sample", model.forward(input))])
    }

    fn text_to_video(&self, case: &Case, pipeline: &Pipeline) -> Result<Outputs> {
        let latents = self.input(case, "latents")?;
        let schedule = self.schedule(case)?;
        self.generate(case, pipeline, &schedule, window(latents, 0))
    }

    fn image_to_video(&self, case: &Case, pipeline: &Pipeline) -> Result<Outputs> {
        let latents = self.input(case, "latents")?;
        let s = latents.size();
        let image = batched_image(&self.input(case, "image")?);
        let schedule = self.schedule(case)?;
        if pipeline.info().expand_timesteps {
            let condition = pipeline.encode_video(&image);
            let known = Known {
                frames: (0..s[2]).map(|frame| frame == 0).collect(),
                noise: condition.zeros_like(),
                latents: condition,
            };
            let window = Window { known: Some(known), ..window(latents, 0) };
            return self.generate(case, pipeline, &schedule, window);
        }
        let last = self.optional_input(case, "last_image").map(|image| batched_image(&image));
        let frames = (s[2] - 1) * pipeline.info().vae.temporal_factor() + 1;
        let i = image.size();
        let video = Tensor::zeros([1, 3, frames, i[3], i[4]], (Kind::Float, Device::Cpu));
        video.narrow(2, 0, 1).copy_(&image);
        let mut known = vec![false; frames as usize];
        known[0] = true;
        if let Some(last) = &last {
            video.narrow(2, frames - 1, 1).copy_(last);
            known[frames as usize - 1] = true;
        }
        let condition = pipeline.channel_condition(&video, &known);
        let condition = condition.expand([s[0], -1, -1, -1, -1], false);
        let window = Window { condition: Some(condition), ..window(latents, 0) };
        self.generate(case, pipeline, &schedule, window)
    }

    fn video_to_video(&self, case: &Case, pipeline: &Pipeline) -> Result<Outputs> {
        let video = self.input(case, "video_in")?.permute([1, 0, 2, 3]).unsqueeze(0) * 2.0 - 1.0;
        let schedule = self.schedule(case)?;
        let begin = begin_index(schedule.len(), case.number("strength").unwrap_or(0.8))?;
        let begin = schedule.index_for_timestep(schedule.timesteps[begin])?;
        let clean = pipeline.encode_video(&video);
        let start = schedule.add_noise(&clean, &self.input(case, "noise")?, begin);
        let mut outputs =
            self.generate(case, pipeline, &schedule, window(start.shallow_clone(), begin))?;
        outputs.push(("start", start));
        Ok(outputs)
    }

    /// The folder's scheduler with what the case changes about it.
    fn schedule(&self, case: &Case) -> Result<Schedule> {
        let steps = case.count("num_inference_steps")?;
        let Some(changes) = case.params.get("scheduler").and_then(Value::as_object) else {
            let folder = self.folder.join("scheduler");
            return Ok(SchedulerConfig::from_folder(&folder)?.set_timesteps(steps, None)?);
        };
        let class = changes.get("class").and_then(Value::as_str).unwrap_or_default();
        let config = scheduler_config(class, Value::Object(changes.clone()))?;
        Ok(config.set_timesteps(steps, case.number("mu"))?)
    }

    fn generate(
        &self,
        case: &Case,
        pipeline: &Pipeline,
        schedule: &Schedule,
        window: Window,
    ) -> Result<Outputs> {
        let scale = case.number("guidance_scale").unwrap_or(5.0);
        let batch = window.latents.size()[0];
        let encode = |text: &str| -> Result<Tensor> {
            let embeds = pipeline.encode_prompt_to(text, case.max_sequence_length())?;
            Ok(embeds.expand([batch, -1, -1], false))
        };
        let positive = encode(case.text("prompt"))?;
        let negative = (scale > 1.0).then(|| encode(case.text("negative_prompt"))).transpose()?;
        let prompts = Prompts::new(pipeline, &positive, negative.as_ref(), None);
        let denoiser = Denoiser {
            pipeline,
            prompts: &prompts,
            guidance: Guidance { scale, scale_2: case.number("guidance_scale_2").unwrap_or(scale) },
            schedule,
            cancel: &|| false,
        };
        let mut steps = Vec::new();
        let latents =
            denoiser.run(&window, None, &mut |latents| steps.push(latents.shallow_clone()))?;
        let mut outputs = vec![("steps", Tensor::stack(&steps, 0))];
        if case.wants("video") {
            let video =
                pipeline.decode_latents(&latents, &mut FeatureCaches::default(), &|| false)?;
            let video = (video * 0.5 + 0.5).clamp(0.0, 1.0).permute([0, 2, 1, 3, 4]);
            outputs.push(("video", video));
        }
        Ok(outputs)
    }
}

/// Results of a case by the end of their key.
type Outputs = Vec<(&'static str, Tensor)>;

fn load(folder: &Path) -> Result<Pipeline> {
    let info = FolderInfo::open(folder)?;
    Ok(Pipeline::load(&info, Device::Cpu, Precision::F32, &mut |_, _| true)?)
}

/// A scheduler as the published folders set it up, with some settings of its own.
fn scheduler_config(class: &str, changes: Value) -> Result<SchedulerConfig> {
    let mut settings = json!({ "prediction_type": "flow_prediction", "use_flow_sigmas": true });
    if let (Some(settings), Value::Object(changes)) = (settings.as_object_mut(), changes) {
        settings.extend(changes);
    }
    Ok(SchedulerConfig::from_json(Path::new("golden.json"), class, settings)?)
}

fn window(latents: Tensor, begin_index: usize) -> Window {
    Window { latents, known: None, condition: None, frame_offset: 0, begin_index }
}

/// `[3, H, W]` or `[1, 3, H, W]` in [0, 1] to `[1, 3, 1, H, W]` in [-1, 1].
fn batched_image(image: &Tensor) -> Tensor {
    let s = image.size();
    let image = image.reshape([1, 3, 1, s[s.len() - 2], s[s.len() - 1]]);
    image * 2.0 - 1.0
}

/// Without the frames that do not fill a latent frame.
fn whole_chunks(video: &Tensor, pipeline: &Pipeline) -> Tensor {
    let factor = pipeline.info().vae.temporal_factor();
    video.narrow(2, 0, (video.size()[2] - 1) / factor * factor + 1)
}

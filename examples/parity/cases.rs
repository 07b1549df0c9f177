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
    Denoiser, Filter, FolderInfo, Guidance, Known, Pipeline, Prompts, StartLevel, Window, resize,
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
    pub inputs: Vec<String>,
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

    /// The end of the only output's key.
    fn only_output(&self) -> Result<String> {
        ensure!(self.outputs.len() == 1, "{} outputs, expected one", self.outputs.len());
        let prefix = format!("{}.", self.name);
        Ok(self.outputs[0].strip_prefix(&prefix).unwrap_or(&self.outputs[0]).to_owned())
    }

    /// Strength of the control, one or one a block.
    fn scales(&self) -> Vec<f64> {
        match self.params.get("conditioning_scale") {
            Some(Value::Array(scales)) => scales.iter().filter_map(Value::as_f64).collect(),
            // More than any model has blocks.
            Some(scale) => vec![scale.as_f64().unwrap_or(1.0); 256],
            None => Vec::new(),
        }
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
            | "i2v" | "v2v" | "i2v_condition" | "clip" | "vace" => {
                let pipeline = match self.pipeline.take() {
                    Some(pipeline) => pipeline,
                    None => load(&self.folder)?,
                };
                let results = guarded(|| Ok(self.with_models(case, &pipeline)))?;
                self.pipeline = Some(pipeline);
                results?
            }
            "resize_lanczos_pil" => guarded(|| Ok(self.resize(case)))??,
            _ => return Ok(false),
        };
        for (suffix, tensor) in results {
            self.results.insert(case.key(&suffix), tensor);
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
            "i2v_condition" => self.condition(case, pipeline),
            "clip" => self.clip(case, pipeline),
            "vace" => self.vace(case, pipeline),
            _ => self.text_to_video(case, pipeline),
        }
    }

    fn input(&self, case: &Case, suffix: &str) -> Result<Tensor> {
        Ok(self.golden.raw(&case.key(suffix))?)
    }

    fn optional_input(&self, case: &Case, suffix: &str) -> Option<Tensor> {
        self.golden.raw(&case.key(suffix)).ok()
    }

    /// The only input of a case.
    fn only_input(&self, case: &Case) -> Result<Tensor> {
        ensure!(case.inputs.len() == 1, "{} inputs, expected one", case.inputs.len());
        Ok(self.golden.raw(&case.inputs[0])?)
    }

    fn scheduler(&self, case: &Case) -> Result<Outputs> {
        let class = case.text("scheduler");
        let config = scheduler_config(class, case.params["config"].clone())?;
        let schedule = config.set_timesteps(case.count("steps")?, case.number("mu"))?;
        let start = case.count("start").unwrap_or(0);
        let steps = schedule.len() - start - case.count("drop_last").unwrap_or(0);
        let mut sample = self.input(case, "sample")?;
        let flow_preds = self.input(case, "model_outputs")?;
        let noises = self.optional_input(case, "noises");
        let noise = |step| {
            noises.as_ref().expect("the case has noises").get(i64::from(step) - start as i64)
        };
        let mut solver = schedule.start(start);
        let trajectory: Vec<Tensor> = (0..steps)
            .map(|i| {
                sample = solver.step(&flow_preds.get(i as i64), &sample, &noise);
                sample.shallow_clone()
            })
            .collect();
        let timesteps = Tensor::from_slice(&schedule.timesteps);
        let whole = !matches!(config, SchedulerConfig::FlowMatchEuler(_));
        let timesteps = if whole { timesteps.to_kind(Kind::Int64) } else { timesteps };
        Ok(vec![
            ("sigmas".into(), Tensor::from_slice(&schedule.sigmas)),
            ("timesteps".into(), timesteps),
            ("trajectory".into(), Tensor::stack(&trajectory, 0)),
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
        Ok(vec![("noisy".into(), schedule.add_noise(&clean, &noise, case.count("index")?))])
    }

    fn text(&self, case: &Case, pipeline: &Pipeline) -> Result<Outputs> {
        let length = self.input(case, "mask")?.sum(Kind::Int64).int64_value(&[]);
        let ids = self.input(case, "ids")?.flatten(0, -1).narrow(0, 0, length);
        let ids: Vec<i64> = ids.try_into()?;
        Ok(vec![(
            "embeds".into(),
            pipeline.text_encoder().encode(&ids, case.max_sequence_length()),
        )])
    }

    fn vae_encode(&self, case: &Case, pipeline: &Pipeline) -> Result<Outputs> {
        let video = whole_chunks(&self.input(case, "video")?, pipeline);
        let latents = pipeline.vae().encode(&video, &mut FeatureCaches::default());
        Ok(vec![("mode".into(), latents.mean), ("logvar".into(), latents.logvar)])
    }

    fn vae_decode(&self, case: &Case, pipeline: &Pipeline) -> Result<Outputs> {
        let (latents, vae) = (self.input(case, "latents")?, pipeline.vae());
        let video = if case.kind == "vae_decode" {
            vae.decode(&latents, &mut FeatureCaches::default())
        } else {
            let (min, stride) = (case.count("tile_min")? as i64, case.count("tile_stride")? as i64);
            vae.decode_tiled(&latents, Tiling { min, stride }, &mut Vec::new())
        };
        Ok(vec![("video".into(), video)])
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
        let mut context =
            model.context(&self.input(case, "encoder_hidden_states")?, image.as_ref());
        if let Some(control) = self.optional_input(case, "control_hidden_states") {
            let scale = self.optional_input(case, "control_hidden_states_scale");
            let scale: Vec<f64> = match scale {
                Some(scale) => scale.to_kind(Kind::Double).flatten(0, -1).try_into()?,
                None => case.scales(),
            };
            context = model.with_control(&context, &control, &scale);
        }
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
        Ok(vec![("sample".into(), model.forward(input))])
    }

    fn text_to_video(&self, case: &Case, pipeline: &Pipeline) -> Result<Outputs> {
        let latents = self.input(case, "latents")?;
        let schedule = self.schedule(case)?;
        self.generate(case, pipeline, &schedule, (window(latents, 0), None))
    }

    fn image_to_video(&self, case: &Case, pipeline: &Pipeline) -> Result<Outputs> {
        let latents = self.input(case, "latents")?;
        let s = latents.size();
        let schedule = self.schedule(case)?;
        let pictures = self.pictures(case)?;
        let image = pipeline
            .image_encoder()
            .filter(|_| pipeline.info().transformer.image_dim.is_some())
            .map(|_| pipeline.encode_images(&pictures.original))
            .transpose()?
            .map(|embeds| embeds.repeat([s[0], 1, 1]));
        ensure!(
            image.is_some() || pipeline.info().transformer.image_dim.is_none(),
            "the transformer has an image_dim, but the folder no image_encoder"
        );
        let condition = pictures.condition(pipeline, s[2]);
        let window = if pipeline.info().expand_timesteps {
            let known = Known {
                frames: (0..s[2]).map(|frame| frame == 0).collect(),
                noise: condition.zeros_like(),
                latents: condition,
            };
            Window { known: Some(known), ..window(latents, 0) }
        } else {
            let condition = condition.expand([s[0], -1, -1, -1, -1], false);
            Window { condition: Some(condition), ..window(latents, 0) }
        };
        self.generate(case, pipeline, &schedule, (window, image.as_ref()))
    }

    /// What is laid beside the latents of a case, without running the transformer.
    fn condition(&self, case: &Case, pipeline: &Pipeline) -> Result<Outputs> {
        let frames = pipeline.info().vae.num_latent_frames(case.count("num_frames")? as i64);
        let condition = self.pictures(case)?.condition(pipeline, frames);
        Ok(vec![(case.only_output()?, condition)])
    }

    fn vace(&self, case: &Case, pipeline: &Pipeline) -> Result<Outputs> {
        let latents = self.input(case, "latents")?;
        let (width, height) = (case.count("width")? as i64, case.count("height")? as i64);
        let frames = case.count("num_frames")? as i64;
        let options = (Kind::Float, Device::Cpu);
        let video = match self.optional_input(case, "video_in") {
            Some(video) => video.permute([1, 0, 2, 3]).unsqueeze(0) * 2.0 - 1.0,
            None => Tensor::zeros([1, 3, frames, height, width], options),
        };
        let mask = match self.optional_input(case, "mask_in") {
            Some(mask) => mask.permute([1, 0, 2, 3]).narrow(0, 0, 1).unsqueeze(0),
            None => Tensor::ones([1, 1, frames, height, width], options),
        };
        let references: Vec<Tensor> = match self.optional_input(case, "reference") {
            Some(pictures) if pictures.dim() == 4 => pictures.unbind(0),
            Some(picture) => vec![picture],
            None => Vec::new(),
        };
        let references: Vec<Tensor> =
            references.iter().map(|picture| picture * 2.0 - 1.0).collect();
        let control = pipeline.control(&video, &mask, &references);
        let batch = latents.size()[0];
        let window = Window {
            control: Some((control.expand([batch, -1, -1, -1, -1], false), case.scales())),
            ..window(latents, 0)
        };
        let schedule = self.schedule(case)?;
        let ahead = references.len() as i64;
        self.generate_after(case, pipeline, &schedule, (window, None), ahead)
    }

    fn clip(&self, case: &Case, pipeline: &Pipeline) -> Result<Outputs> {
        let input = self.only_input(case)?;
        let model = pipeline.image_encoder().context("the folder has no image_encoder")?;
        let embeds = if case.inputs[0].ends_with("pixel_values") {
            model.forward(&input)
        } else {
            pipeline.encode_images(&[input.squeeze()])?
        };
        Ok(vec![(case.only_output()?, embeds)])
    }

    fn resize(&self, case: &Case) -> Result<Outputs> {
        let image = self.only_input(case)?;
        let golden = self.golden.raw(case.outputs.first().context("no output")?)?;
        let s = golden.size();
        let size = (s[s.len() - 1], s[s.len() - 2]);
        let resized = resize(&image.squeeze(), size, Filter::Lanczos);
        Ok(vec![(case.only_output()?, resized.view(s.as_slice()))])
    }

    /// The pictures of a case, as given and at the size of its video.
    fn pictures(&self, case: &Case) -> Result<Pictures> {
        let size = (case.count("width")? as i64, case.count("height")? as i64);
        let original: Vec<Tensor> =
            [self.input(case, "image").ok(), self.optional_input(case, "last_image")]
                .into_iter()
                .flatten()
                .map(|image| {
                    image.view([3, image.size()[image.dim() - 2], image.size()[image.dim() - 1]])
                })
                .collect();
        ensure!(!original.is_empty(), "no image among the inputs");
        let fitted = original
            .iter()
            .map(|image| {
                resize(image, size, Filter::Lanczos).view([1, 3, 1, size.1, size.0]) * 2.0 - 1.0
            })
            .collect();
        Ok(Pictures { original, fitted })
    }

    fn video_to_video(&self, case: &Case, pipeline: &Pipeline) -> Result<Outputs> {
        let video = self.input(case, "video_in")?.permute([1, 0, 2, 3]).unsqueeze(0) * 2.0 - 1.0;
        let schedule = self.schedule(case)?;
        let strength = StartLevel::Strength(case.number("strength").unwrap_or(0.8));
        let (schedule, begin) = strength.place(&schedule)?;
        let clean = pipeline.encode_video(&video);
        let start = schedule.add_noise(&clean, &self.input(case, "noise")?, begin);
        let mut outputs =
            self.generate(case, pipeline, &schedule, (window(start.shallow_clone(), begin), None))?;
        outputs.push(("start".into(), start));
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
        conditions: (Window, Option<&Tensor>),
    ) -> Result<Outputs> {
        self.generate_after(case, pipeline, schedule, conditions, 0)
    }

    /// As [`Runner::generate`], with `ahead` latent frames in front that are not shown.
    fn generate_after(
        &self,
        case: &Case,
        pipeline: &Pipeline,
        schedule: &Schedule,
        (window, image): (Window, Option<&Tensor>),
        ahead: i64,
    ) -> Result<Outputs> {
        let scale = case.number("guidance_scale").unwrap_or(5.0);
        let batch = window.latents.size()[0];
        let encode = |text: &str| -> Result<Tensor> {
            let embeds = pipeline.encode_prompt_to(text, case.max_sequence_length())?;
            Ok(embeds.expand([batch, -1, -1], false))
        };
        let positive = encode(case.text("prompt"))?;
        let negative = (scale > 1.0).then(|| encode(case.text("negative_prompt"))).transpose()?;
        let prompts = Prompts::new(pipeline, &positive, negative.as_ref(), image);
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
        let mut outputs = vec![("steps".into(), Tensor::stack(&steps, 0))];
        if case.wants("video") {
            let latents = latents.narrow(2, ahead, latents.size()[2] - ahead);
            let video =
                pipeline.decode_latents(&latents, &mut FeatureCaches::default(), &|| false)?;
            let video = (video * 0.5 + 0.5).clamp(0.0, 1.0).permute([0, 2, 1, 3, 4]);
            outputs.push(("video".into(), video));
        }
        Ok(outputs)
    }
}

/// Results of a case by the end of their key.
type Outputs = Vec<(String, Tensor)>;

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

fn window(latents: Tensor, begin_index: usize) -> Window<'static> {
    Window {
        latents,
        known: None,
        condition: None,
        control: None,
        frame_offset: 0,
        begin_index,
        noise: Box::new(|_| unreachable!("no case of a pipeline has a stochastic solver")),
    }
}

/// The first picture of a video, and perhaps the last.
struct Pictures {
    /// `[3, H, W]` in [0, 1].
    original: Vec<Tensor>,
    /// `[1, 3, 1, height, width]` in [-1, 1].
    fitted: Vec<Tensor>,
}

impl Pictures {
    /// Latents of the first picture for folders with `expand_timesteps`, else channels for all `latent_frames`.
    fn condition(&self, pipeline: &Pipeline, latent_frames: i64) -> Tensor {
        if pipeline.info().expand_timesteps {
            return pipeline.encode_video(&self.fitted[0]);
        }
        let frames = (latent_frames - 1) * pipeline.info().vae.temporal_factor() + 1;
        let s = self.fitted[0].size();
        let video = Tensor::zeros([1, 3, frames, s[3], s[4]], (Kind::Float, Device::Cpu));
        let mut known = vec![false; frames as usize];
        for (picture, place) in self.fitted.iter().zip([0, frames - 1]) {
            video.narrow(2, place, 1).copy_(picture);
            known[place as usize] = true;
        }
        pipeline.channel_condition(&video, &known)
    }
}

/// Without the frames that do not fill a latent frame.
fn whole_chunks(video: &Tensor, pipeline: &Pipeline) -> Tensor {
    let factor = pipeline.info().vae.temporal_factor();
    video.narrow(2, 0, (video.size()[2] - 1) / factor * factor + 1)
}

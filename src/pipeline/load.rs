// SPDX-License-Identifier: MPL-2.0
//! Loading the components of a folder, with progress and a way to stop.

use std::cell::RefCell;
use std::path::Path;
use std::rc::Rc;

use tch::{Device, Kind};

use super::image::ImageProcessor;
use super::{FolderInfo, Pipeline};
use crate::error::{Error, Result};
use crate::models::autoencoder_kl_wan::AutoencoderKLWan;
use crate::models::clip_vision::ClipVisionModel;
use crate::models::tokenizer::PromptTokenizer;
use crate::models::transformer_wan::WanTransformer3DModel;
use crate::models::umt5::UMT5EncoderModel;
use crate::torch::{Precision, guarded, kind_bytes};
use crate::weights::lora::Lora;
use crate::weights::{Checkpoint, Source, Weights};

/// Stem of the weight files of transformers and autoencoder.
pub(super) const DIFFUSERS_STEM: &str = "diffusion_pytorch_model";
/// Stem of the weight files of text and image encoders.
pub(super) const TRANSFORMERS_STEM: &str = "model";

/// Told what is being loaded and the share done in [0, 1]; false stops the loading.
pub type Progress<'a> = dyn FnMut(&str, f64) -> bool + 'a;

/// Counts bytes over all components.
struct Meter<'a> {
    progress: RefCell<&'a mut Progress<'a>>,
    done: RefCell<u64>,
    total: u64,
}

impl Meter<'_> {
    fn add(&self, phase: &str, bytes: u64) -> Result<()> {
        let mut done = self.done.borrow_mut();
        *done += bytes;
        let share = (*done as f64 / self.total.max(1) as f64).min(1.0);
        if (self.progress.borrow_mut())(phase, share) { Ok(()) } else { Err(Error::Cancelled) }
    }
}

/// One component on its way from disk to device.
struct Component<'a> {
    folder: &'a Path,
    name: &'a str,
    stem: &'a str,
    kind: Kind,
    device: Device,
    loras: &'a [Rc<Lora>],
}

impl Component<'_> {
    /// Builds a model from the files and checks that all their tensors were asked for.
    fn load<T>(
        &self,
        meter: &Meter<'_>,
        may_ignore: impl Fn(&str) -> bool,
        build: impl FnOnce(&Weights<'_>) -> Result<T>,
    ) -> Result<T> {
        let phase = format!("loading {}", self.name);
        meter.add(&phase, 0)?;
        let source = Source::frozen(Checkpoint::open(&self.folder.join(self.name), self.stem)?)
            .merged_with(self.loras, self.name);
        let observer = |bytes: u64| meter.add(&phase, bytes);
        let model = build(&source.weights(self.kind, self.device).observed(&observer))?;
        source.check_all_used(may_ignore)?;
        Ok(model)
    }

    /// Bytes of all tensors once loaded.
    fn bytes(&self) -> Result<u64> {
        let checkpoint = Checkpoint::open(&self.folder.join(self.name), self.stem)?;
        let elements: i64 = checkpoint
            .names()
            .filter_map(|name| checkpoint.shape(name))
            .map(|shape| shape.iter().product::<i64>())
            .sum();
        Ok(elements as u64 * kind_bytes(self.kind))
    }
}

/// The components of a folder.
struct Components<'a> {
    text_encoder: Component<'a>,
    vae: Component<'a>,
    image_encoder: Option<Component<'a>>,
    /// One or two.
    transformers: Vec<Component<'a>>,
}

impl<'a> Components<'a> {
    fn of(
        info: &'a FolderInfo,
        device: Device,
        precision: Precision,
        loras: &'a [Rc<Lora>],
    ) -> Self {
        let kind = precision.kind(device);
        let component =
            |name, stem, kind| Component { folder: &info.folder, name, stem, kind, device, loras };
        let mut transformers = vec![component("transformer", DIFFUSERS_STEM, kind)];
        if info.transformer_2.is_some() {
            transformers.push(component("transformer_2", DIFFUSERS_STEM, kind));
        }
        Self {
            text_encoder: component("text_encoder", TRANSFORMERS_STEM, kind),
            // Half precision costs these two visibly, and saves little.
            vae: component("vae", DIFFUSERS_STEM, Kind::Float),
            image_encoder: info
                .image_encoder
                .as_ref()
                .map(|_| component("image_encoder", TRANSFORMERS_STEM, Kind::Float)),
            transformers,
        }
    }

    fn all(&self) -> impl Iterator<Item = &Component<'a>> {
        [&self.text_encoder, &self.vae]
            .into_iter()
            .chain(&self.image_encoder)
            .chain(&self.transformers)
    }
}

/// Bytes of a folder's weights once loaded.
pub(super) fn weight_bytes(info: &FolderInfo, device: Device, precision: Precision) -> Result<u64> {
    Components::of(info, device, precision, &[]).all().map(Component::bytes).sum()
}

impl Pipeline {
    /// Loads all components of a folder to a device: mapped from disk, in the wanted precision, never initialised first.
    ///
    /// # Errors
    /// [`Error::Cancelled`] when `progress` says so, else an error naming the file or tensor at fault.
    pub fn load<'p>(
        info: &FolderInfo,
        device: Device,
        precision: Precision,
        progress: &'p mut Progress<'p>,
    ) -> Result<Self> {
        guarded(|| {
            let total = weight_bytes(info, device, precision)?;
            let meter = Meter { progress: RefCell::new(progress), done: RefCell::new(0), total };
            let opened = info.loras.iter().map(|file| Lora::open(file).map(Rc::new));
            let loras = opened.collect::<Result<Vec<_>>>()?;
            let components = Components::of(info, device, precision, &loras);
            let tokenizer = PromptTokenizer::from_folder(&info.folder.join("tokenizer"))?;
            check_vocabulary(info, &tokenizer)?;
            let text_encoder =
                components.text_encoder.load(&meter, UMT5EncoderModel::may_ignore, |w| {
                    UMT5EncoderModel::new(w, &info.text_encoder)
                })?;
            let vae =
                components.vae.load(&meter, |_| false, |w| AutoencoderKLWan::new(w, &info.vae))?;
            let image_encoder = load_image_encoder(info, &components, &meter)?;
            let configs = std::iter::once(&info.transformer).chain(&info.transformer_2);
            let transformers = components
                .transformers
                .iter()
                .zip(configs)
                .map(|(component, config)| {
                    component.load(&meter, WanTransformer3DModel::may_ignore, |w| {
                        WanTransformer3DModel::new(w, config)
                    })
                })
                .collect::<Result<Vec<_>>>()?;
            for lora in &loras {
                lora.check_all_used()?;
            }
            Ok(Self {
                info: info.clone(),
                device,
                tokenizer,
                text_encoder,
                transformers,
                vae,
                image_encoder,
            })
        })
    }
}

fn load_image_encoder(
    info: &FolderInfo,
    components: &Components<'_>,
    meter: &Meter<'_>,
) -> Result<Option<(ClipVisionModel, ImageProcessor)>> {
    let (Some(component), Some(config)) = (&components.image_encoder, &info.image_encoder) else {
        return Ok(None);
    };
    let may_ignore = |key: &str| ClipVisionModel::may_ignore(config, key);
    let model = component.load(meter, may_ignore, |w| ClipVisionModel::new(w, config))?;
    let processor = ImageProcessor::from_folder(&info.folder.join("image_processor"))?;
    Ok(Some((model, processor)))
}

/// A token without an embedding would only be found when a prompt has it.
fn check_vocabulary(info: &FolderInfo, tokenizer: &PromptTokenizer) -> Result<()> {
    let (ids, rows) = (tokenizer.vocab_size() as i64, info.text_encoder.vocab_size);
    if ids <= rows {
        return Ok(());
    }
    let name = format!("{}: tokens of tokenizer/tokenizer.json", info.folder.display());
    Err(Error::setting(name, ids, format!("at most text_encoder's vocab_size, {rows}")))
}

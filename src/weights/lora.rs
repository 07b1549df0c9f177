// SPDX-License-Identifier: MPL-2.0
//! Low-rank changes of weights (LoRA, Hu et al., arXiv 2106.09685): files to merge at load, and adapters to train.
//!
//! A layer `W` `[out, in]` becomes `W + scale * alpha / r * B A` with `A` `[r, in]` and `B` `[out, r]`; without an alpha
//! in the file it is `r`. Files may name their tensors as diffusers and PEFT do
//! (`transformer.blocks.0.attn1.to_q.lora_A.weight`), with the layer names of the original Wan code
//! (`diffusion_model.blocks.0.self_attn.q.lora_down.weight`), or as kohya's trainers do
//! (`lora_unet_blocks_0_self_attn_q.lora_down.weight`).

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use tch::{Device, Kind, Tensor};

use super::{Checkpoint, Init, Parameters};
use crate::error::{Error, Result, listed};

/// Which file to merge, and how strongly.
#[derive(Debug, Clone, PartialEq)]
pub struct LoraFile {
    pub path: PathBuf,
    /// 1 as trained, 0 not at all.
    pub scale: f64,
}

/// Layer names of the original Wan code and those of diffusers.
const ORIGINAL_NAMES: [(&str, &str); 12] = [
    ("self_attn.q", "attn1.to_q"),
    ("self_attn.k", "attn1.to_k"),
    ("self_attn.v", "attn1.to_v"),
    ("self_attn.o", "attn1.to_out.0"),
    ("cross_attn.q", "attn2.to_q"),
    ("cross_attn.k", "attn2.to_k"),
    ("cross_attn.v", "attn2.to_v"),
    ("cross_attn.o", "attn2.to_out.0"),
    ("cross_attn.k_img", "attn2.add_k_proj"),
    ("cross_attn.v_img", "attn2.add_v_proj"),
    ("ffn.0", "ffn.net.0.proj"),
    ("ffn.2", "ffn.net.2"),
];

/// The component that keys without a prefix are meant for.
const TRANSFORMER: &str = "transformer";

/// What a tensor of the file is to its layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Down,
    Up,
    Alpha,
}

const PARTS: [(&str, Part); 9] = [
    (".lora_A.weight", Part::Down),
    (".lora_A.default.weight", Part::Down),
    (".lora_down.weight", Part::Down),
    (".lora.down.weight", Part::Down),
    (".lora_B.weight", Part::Up),
    (".lora_B.default.weight", Part::Up),
    (".lora_up.weight", Part::Up),
    (".lora.up.weight", Part::Up),
    (".alpha", Part::Alpha),
];

/// Keys of one layer's tensors.
#[derive(Debug, Default)]
struct Layer {
    down: Option<String>,
    up: Option<String>,
    alpha: Option<String>,
}

/// A file that has been opened.
pub struct Lora {
    file: LoraFile,
    checkpoint: Checkpoint,
    /// By component and layer, as in (`transformer`, `blocks.0.attn1.to_q`).
    layers: BTreeMap<(String, String), Layer>,
    used: RefCell<BTreeSet<(String, String)>>,
}

impl Lora {
    /// Opens a file and sorts its tensors by layer.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] for a file that is missing, damaged, or holds anything but pairs of low-rank matrices.
    pub fn open(file: &LoraFile) -> Result<Self> {
        let checkpoint = Checkpoint::open_file(&file.path)?;
        let wrong = |what: String| Err(Error::checkpoint(&file.path, what));
        let mut layers: BTreeMap<(String, String), Layer> = BTreeMap::new();
        let (mut strange, mut double) = (Vec::new(), Vec::new());
        for name in checkpoint.names() {
            let Some((component, layer, part)) = parse(name) else {
                strange.push(name.to_owned());
                continue;
            };
            let layer = layers.entry((component, layer)).or_default();
            let slot = match part {
                Part::Down => &mut layer.down,
                Part::Up => &mut layer.up,
                Part::Alpha => &mut layer.alpha,
            };
            if slot.replace(name.to_owned()).is_some() {
                double.push(name.to_owned());
            }
        }
        if !strange.is_empty() {
            return wrong(format!(
                "{} tensor(s) that are no part of a LoRA: {}; expected names as transformer.blocks.0.attn1.to_q.lora_A.weight",
                strange.len(),
                listed(&strange)
            ));
        }
        let half = |layer: &&Layer| layer.down.is_none() || layer.up.is_none();
        let halves: Vec<String> = layers
            .iter()
            .filter(|(_, layer)| half(layer))
            .map(|((_, name), _)| name.clone())
            .chain(double)
            .collect();
        if layers.is_empty() || !halves.is_empty() {
            return wrong(format!(
                "expected one lora_A and one lora_B for each layer, found {} layer(s), of which not so: {}",
                layers.len(),
                listed(&halves)
            ));
        }
        Ok(Self { file: file.clone(), checkpoint, layers, used: RefCell::default() })
    }

    /// What is to be added to the weight `[out, in]` of a layer, in f32; `None` where the file leaves it as it is.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] for matrices that do not fit the layer or are not finite.
    pub(super) fn change(
        &self,
        component: &str,
        layer: &str,
        shape: &[i64],
        device: Device,
    ) -> Result<Option<Tensor>> {
        let key = (component.to_owned(), layer.to_owned());
        let Some(Layer { down: Some(down), up: Some(up), alpha }) = self.layers.get(&key) else {
            return Ok(None);
        };
        let size = |name: &str| self.checkpoint.shape(name).unwrap_or_default().to_vec();
        let (down_size, up_size) = (size(down), size(up));
        let fits = shape.len() == 2
            && down_size.len() == 2
            && up_size == [shape[0], down_size[0]]
            && down_size[1] == shape[1];
        if !fits {
            let what = format!(
                "{down} has shape {down_size:?} and {up} {up_size:?}, expected [r, in] and [out, r] for the layer's {shape:?}. Is this LoRA made for another model?"
            );
            return Err(Error::checkpoint(&self.file.path, what));
        }
        let matrix = |name: &str| self.checkpoint.float(name, Kind::Float, device);
        let rank = down_size[0] as f64;
        let alpha = match alpha {
            Some(name) => self
                .checkpoint
                .float(name, Kind::Float, Device::Cpu)?
                .f_sum(Kind::Float)?
                .f_double_value(&[])?,
            None => rank,
        };
        self.used.borrow_mut().insert(key);
        let change = matrix(up)?.f_matmul(&matrix(down)?)?;
        Ok(Some(change.f_mul_scalar(self.file.scale * alpha / rank)?))
    }

    /// Reports layers of the file that no component has asked for.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] with their names.
    pub fn check_all_used(&self) -> Result<()> {
        let used = self.used.borrow();
        let unused: Vec<String> = self
            .layers
            .keys()
            .filter(|key| !used.contains(*key))
            .map(|(component, layer)| format!("{component}.{layer}"))
            .collect();
        if unused.is_empty() {
            return Ok(());
        }
        let what = format!(
            "{} of {} layer(s) that the model does not have: {}. Is this LoRA made for another model?",
            unused.len(),
            self.layers.len(),
            listed(&unused)
        );
        Err(Error::checkpoint(&self.file.path, what))
    }
}

/// Component, layer by diffusers' name, and part of a key; `None` if it is no such key.
fn parse(name: &str) -> Option<(String, String, Part)> {
    let (stem, part) =
        PARTS.iter().find_map(|(end, part)| name.strip_suffix(end).map(|stem| (stem, *part)))?;
    let stem = stem.strip_prefix("base_model.model.").unwrap_or(stem);
    let (component, stem) = ["transformer_2", TRANSFORMER, "text_encoder"]
        .iter()
        .find_map(|component| Some((*component, stem.strip_prefix(component)?.strip_prefix('.')?)))
        .unwrap_or_else(|| (TRANSFORMER, stem.strip_prefix("diffusion_model.").unwrap_or(stem)));
    let layer = match stem.strip_prefix("lora_unet_") {
        Some(flat) => from_kohya(flat)?,
        None => ORIGINAL_NAMES
            .iter()
            .find_map(|(original, ours)| {
                let block = stem.strip_suffix(original)?.strip_suffix('.')?;
                // `blocks.0` alone: `ffn.net.2` must not be taken for `ffn.2` of something.
                (block.matches('.').count() == 1).then(|| format!("{block}.{ours}"))
            })
            .unwrap_or_else(|| stem.to_owned()),
    };
    Some((component.to_owned(), layer, part))
}

/// `blocks_0_self_attn_q` to `blocks.0.attn1.to_q`.
fn from_kohya(flat: &str) -> Option<String> {
    let (block, name) = flat.trim_start_matches('_').strip_prefix("blocks_")?.split_once('_')?;
    let number: u32 = block.parse().ok()?;
    let (_, ours) =
        ORIGINAL_NAMES.iter().find(|(original, _)| original.replace('.', "_") == name)?;
    Some(format!("blocks.{number}.{ours}"))
}

/// Pairs of low-rank matrices to train beside frozen weights.
pub struct Adapters {
    rank: i64,
    alpha: f64,
    /// Whether a layer, by its path, gets one.
    wanted: fn(&str) -> bool,
    parameters: Parameters,
}

impl Adapters {
    /// Adapters of a rank for the layers that `wanted` names; `parameters` holds what is there to begin with.
    pub fn new(rank: i64, alpha: f64, wanted: fn(&str) -> bool, parameters: Parameters) -> Self {
        Self { rank, alpha, wanted, parameters }
    }

    /// The trainable matrices, by names as `blocks.0.attn1.to_q.lora_A.weight`.
    pub fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    pub(super) fn adapter(
        &self,
        layer: &str,
        [output, input]: [i64; 2],
        device: Device,
    ) -> Result<Option<Adapter>> {
        if !(self.wanted)(layer) {
            return Ok(None);
        }
        let make = |name: &str, shape: [i64; 2], init| {
            self.parameters.make(&format!("{layer}.{name}.weight"), &shape, init, device)
        };
        Ok(Some(Adapter {
            // The spread that PEFT begins with; B is zero, so that training begins at the model as it is.
            down: make("lora_A", [self.rank, input], Init::FanIn(1.0 / 3f64.sqrt()))?,
            up: make("lora_B", [output, self.rank], Init::Zeros)?,
            scale: self.alpha / self.rank as f64,
        }))
    }
}

/// A pair of low-rank matrices beside a layer.
#[derive(Debug)]
pub struct Adapter {
    down: Tensor,
    up: Tensor,
    scale: f64,
}

impl Adapter {
    /// What is added to the layer's output: `[.., in]` to `[.., out]` in the kind of `x`.
    pub fn forward(&self, x: &Tensor) -> Tensor {
        let low = x.to_kind(Kind::Float).linear(&self.down, None::<&Tensor>);
        (low.linear(&self.up, None::<&Tensor>) * self.scale).to_kind(x.kind())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_of_all_dialects_name_the_same_layer() {
        let attention = ("transformer".to_owned(), "blocks.3.attn1.to_q".to_owned());
        for key in [
            "transformer.blocks.3.attn1.to_q.lora_A.weight",
            "base_model.model.transformer.blocks.3.attn1.to_q.lora_A.default.weight",
            "blocks.3.attn1.to_q.lora_down.weight",
            "diffusion_model.blocks.3.self_attn.q.lora_A.weight",
            "lora_unet_blocks_3_self_attn_q.lora_down.weight",
            "lora_unet__blocks_3_self_attn_q.lora_down.weight",
        ] {
            let (component, layer, part) = parse(key).unwrap();
            assert_eq!(((component, layer), part), (attention.clone(), Part::Down), "{key}");
        }
        let (component, layer, part) =
            parse("transformer_2.blocks.0.ffn.net.2.lora_B.weight").unwrap();
        assert_eq!((component.as_str(), layer.as_str()), ("transformer_2", "blocks.0.ffn.net.2"));
        assert_eq!(part, Part::Up);
        let (_, layer, part) = parse("diffusion_model.blocks.1.ffn.0.alpha").unwrap();
        assert_eq!((layer.as_str(), part), ("blocks.1.ffn.net.0.proj", Part::Alpha));
        assert_eq!(parse("blocks.0.attn1.to_q.weight"), None);
        assert_eq!(parse("lora_unet_middle_block_q.lora_up.weight"), None);
    }
}

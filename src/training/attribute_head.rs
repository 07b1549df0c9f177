// SPDX-License-Identifier: MPL-2.0
//! A lesson beside denoising: tokens in the middle of the transformer must tell what the caption and the picture say.
//!
//! The outline of an object is worth next to nothing in the loss of the latents, so a model can leave the word for it unheard
//! for a whole training. To name what a token is part of, it has to be heard; once the name is in the token, later
//! blocks can draw by it. Supervising tokens half-way follows REPA (Yu et al., arXiv 2410.06940), with the world's own
//! attributes in place of another network's features. The head is trained but not part of the model.

use tch::{Kind, Tensor};

use super::batch::moved;
use super::world::{Attributes, Background, Colour, Motion, Shape, Style};
use crate::error::Result;
use crate::weights::{Init, Weights};

/// Values of colour, shape and motion, which are the object's, then of background and style.
const CLASSES: [usize; 5] = [
    Colour::ALL.len(),
    Shape::ALL.len(),
    Motion::ALL.len(),
    Background::ALL.len(),
    Style::ALL.len(),
];
/// How many of them only tokens of the object tell.
const OF_OBJECT: usize = 3;
/// Numbers of a place: centre and radius, and how they change within a latent frame.
pub(super) const PLACE: i64 = 6;
/// Cells of an outline along each side of a latent, and its frames in a latent frame.
pub(super) const OUTLINE_CELLS: i64 = 4;
pub(super) const OUTLINE_FRAMES: i64 = 4;
/// A twelfth of a token off counts as much as a hundredth of a nat.
const PLACE_WEIGHT: f64 = 1.5;
/// Errors beyond so many tokens count as if that far: an object that leaves at one side comes in at the other.
const FARTHEST: f64 = 2.0;

/// What clips show.
#[derive(Debug)]
pub(super) struct Truth {
    /// The numbers of colour, shape, motion, background and style, `[B, 5]`.
    pub attributes: Tensor,
    /// The object's place in each latent frame, `[B, T, 6]`: x and y of its centre and its radius, and the change of each
    /// within a latent frame, as fractions of the frame's width (x) or height.
    pub places: Tensor,
    /// How much of each cell the object covers, in each of four frames of each latent frame, `[B, T, 4, 4h, 4w]`, 0 to 255.
    pub outlines: Tensor,
}

/// The numbers of a clip's attributes, in the order of the table above.
pub(super) fn numbers(attributes: &Attributes) -> [i64; 5] {
    let Attributes { colour, shape, motion, background, style } = *attributes;
    [colour as i64, shape as i64, motion as i64, background as i64, style as i64]
}

/// Reads attributes off tokens.
#[derive(Debug)]
pub(super) struct AttributeHead {
    /// `[1 + values of all attributes + 6, D]`.
    weight: Tensor,
    bias: Tensor,
    /// `[frames * rows * columns of cells of a token, D]`.
    outline_weight: Tensor,
    outline_bias: Tensor,
}

impl AttributeHead {
    /// For tokens of `dim` numbers, of `patch` latents along each side.
    ///
    /// # Errors
    /// When the weights are of another shape.
    pub fn new(w: &Weights, dim: i64, patch: i64) -> Result<Self> {
        let rows = 1 + CLASSES.iter().sum::<usize>() as i64 + PLACE;
        let cells = OUTLINE_FRAMES * (OUTLINE_CELLS * patch).pow(2);
        Ok(Self {
            weight: w.get("weight", &[rows, dim], Init::Zeros)?,
            bias: w.get("bias", &[rows], Init::Zeros)?,
            outline_weight: w.get("outline.weight", &[cells, dim], Init::Zeros)?,
            outline_bias: w.get("outline.bias", &[cells], Init::Zeros)?,
        })
    }

    /// How badly tokens `[B, N, D]` of `grid` `[t, h, w]` tell whether the object touches them, which `touched` `[B, N]` says by 1,
    /// and the truth: first the mean of the cross-entropies of all attributes, in nats, and of what the squared error of the
    /// place counts, then that of the cells of the outline.
    pub fn loss(
        &self,
        tokens: &Tensor,
        grid: [i64; 3],
        truth: &Truth,
        touched: &Tensor,
    ) -> [Tensor; 2] {
        let normed = tokens.to_kind(Kind::Float).layer_norm(
            [tokens.size()[2]],
            None::<&Tensor>,
            None::<&Tensor>,
            1e-6,
            true,
        );
        [self.named(&normed, grid, truth, touched), self.outlined(&normed, grid, truth, touched)]
    }

    /// The cells of the outline, of tokens that the object touches: whoever tells them has made a picture of the shape.
    fn outlined(
        &self,
        normed: &Tensor,
        [t, h, w]: [i64; 3],
        truth: &Truth,
        touched: &Tensor,
    ) -> Tensor {
        let s = truth.outlines.size();
        let (rows, columns) = (s[3] / h, s[4] / w);
        let covered = truth
            .outlines
            .reshape([s[0], t, OUTLINE_FRAMES, h, rows, w, columns])
            .permute([0, 1, 3, 5, 2, 4, 6]) // [B, t, h, w, frames, rows, columns]
            .reshape([s[0], t * h * w, -1])
            .to_kind(Kind::Float)
            / 255.0;
        let logits = normed.linear(&self.outline_weight, Some(&self.outline_bias));
        let off = logits.binary_cross_entropy_with_logits::<Tensor>(
            &covered,
            None,
            None,
            tch::Reduction::None,
        );
        let off = off.mean_dim(2, false, Kind::Float) * touched;
        off.sum(Kind::Float) / touched.sum(Kind::Float).clamp_min(1.0)
    }

    fn named(&self, normed: &Tensor, grid: [i64; 3], truth: &Truth, touched: &Tensor) -> Tensor {
        let s = normed.size();
        let logits = normed.linear(&self.weight, Some(&self.bias));
        let there = logits.select(2, 0);
        let mut loss = there.binary_cross_entropy_with_logits::<Tensor>(
            touched,
            None,
            None,
            tch::Reduction::Mean,
        );
        let count_touched = touched.sum(Kind::Float).clamp_min(1.0);
        let mut first = 1;
        for (index, count) in CLASSES.into_iter().enumerate() {
            let named = logits.narrow(2, first, count as i64).log_softmax(2, Kind::Float);
            let right = truth
                .attributes
                .narrow(1, index as i64, 1)
                .unsqueeze(1)
                .expand([s[0], s[1], 1], false);
            let off = -named.gather(2, &right, false).squeeze_dim(2);
            let mean = if index < OF_OBJECT {
                (off * touched).sum(Kind::Float) / &count_touched
            } else {
                off.mean(Kind::Float)
            };
            loss += mean;
            first += count as i64;
        }
        let off = logits.narrow(2, first, PLACE) - seen_from_tokens(&truth.places, grid);
        let off = off.clamp(-FARTHEST, FARTHEST).square().mean_dim(2, false, Kind::Float);
        loss += (off * touched).sum(Kind::Float) / count_touched * PLACE_WEIGHT;
        loss / (2 + CLASSES.len()) as f64
    }
}

/// Places `[B, T, 6]` as the tokens `[t, h, w]` see them, `[B, N, 6]`: centres from theirs, all in tokens.
fn seen_from_tokens(places: &Tensor, [frames, height, width]: [i64; 3]) -> Tensor {
    let options = (Kind::Float, places.device());
    let (h, w) = (height as f64, width as f64);
    let scale = Tensor::from_slice(&[w, h, h, w, h, h]).to_kind(Kind::Float);
    let scale = moved(&scale, places.device());
    let scaled = (places * scale).view([-1, frames, 1, 1, PLACE]);
    let x = (Tensor::arange(width, options) + 0.5).view([1, width]).expand([height, width], false);
    let y =
        (Tensor::arange(height, options) + 0.5).view([height, 1]).expand([height, width], false);
    let none = x.zeros_like();
    let own = Tensor::stack(&[&x, &y, &none, &none, &none, &none], 2);
    (scaled - own.view([1, 1, height, width, PLACE])).flatten(1, 3)
}

#[cfg(test)]
mod tests {
    use tch::Device;

    use super::super::world::{Scene, Split};
    use super::*;
    use crate::pipeline::torch_noise;
    use crate::weights::{Parameters, Source};

    #[test]
    fn names_are_learnt_where_they_belong() {
        let float = (Kind::Float, Device::Cpu);
        let source = Source::Trainable(Parameters::default());
        let head = AttributeHead::new(&source.weights(Kind::Float, Device::Cpu), 32, 1).unwrap();
        let scenes = [0, 1].map(|index| Scene::from_index(index, Split::Train).attributes);
        let attributes: Vec<i64> = scenes.iter().flat_map(numbers).collect();
        let attributes = Tensor::from_slice(&attributes).view([2, 5]);
        // In the middle of one row of six tokens, and a step from the left one.
        let places = [0.5f32, 0.5, 0.5, 0.1, 0.0, 0.0, 0.25, 0.5, 0.5, 0.1, 0.0, 0.0];
        // Of the one the left half of each token is covered, of the other all of it.
        let outlines = Tensor::full([2, 1, OUTLINE_FRAMES, 4, 24], 255, (Kind::Uint8, Device::Cpu));
        for token in 0..6 {
            let _ = outlines.get(0).narrow(3, 4 * token + 2, 2).zero_();
        }
        let places = Tensor::from_slice(&places).view([2, 1, PLACE]);
        let truth = Truth { attributes, places, outlines };
        let seen = seen_from_tokens(&truth.places, [1, 1, 6]);
        assert_eq!((seen.size(), seen.double_value(&[0, 2, 0])), (vec![2, 6, PLACE], 0.5));
        assert_eq!(seen.double_value(&[1, 5, 0]), -4.0);
        // What the object's tokens look like says everything, that of others only what is behind it.
        let touched = Tensor::zeros([2, 6], float);
        let _ = touched.narrow(1, 0, 2).fill_(1.0);
        let tokens = torch_noise(1, &[2, 6, 32]);
        let loss = |touched: &Tensor| head.loss(&tokens, [1, 1, 6], &truth, touched);
        let figures = |touched: &Tensor| loss(touched).map(|part| part.double_value(&[]));
        let before = figures(&touched);
        for _ in 0..60 {
            let [names, outline] = loss(&touched);
            (names + outline).backward();
            tch::no_grad(|| {
                for (_, mut parameter) in source.parameters().unwrap().named() {
                    let mut grad = parameter.grad();
                    let _ = parameter.g_sub_(&(&grad * 2.0));
                    let _ = grad.zero_();
                }
            });
        }
        let after = figures(&touched);
        assert!((0..2).all(|i| after[i] < 0.2 * before[i]), "{after:?} of {before:?}");
        // Other tokens of the object say nothing: only background, style and place are learnt from them.
        let elsewhere = touched.ones_like() - &touched;
        let wrong = figures(&elsewhere);
        assert!((0..2).all(|i| wrong[i] > 2.0 * after[i]), "{wrong:?}");
    }
}

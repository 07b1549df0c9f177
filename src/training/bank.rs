// SPDX-License-Identifier: MPL-2.0
//! Latents of freshly drawn clips, kept for a while: encoding costs more than a training step, so each clip is
//! met several times, every time with another caption, noise and noise level.

use tch::{Device, Tensor};

use super::attribute_head::{OUTLINE_CELLS, OUTLINE_FRAMES, PLACE};
use super::emphasis;
use super::exchange::{Exchanged, exchanged};
use super::vae::{FRAME_RATE, render};
use super::world::draw::{Draws, mix64};
use super::world::{Attributes, Placement, Scene, Split, Style};
use crate::models::autoencoder_kl_wan::AutoencoderKLWan;
use crate::nn::conv3d::FeatureCaches;

/// Size and length of the clips of one bucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Shape {
    pub width: i64,
    pub height: i64,
    /// 4n+1.
    pub frames: i64,
}

/// One clip: normalised latents `[z, T, h, w]`, their weights in the loss `[1, T, h, w]`, what it shows, and where and within which
/// outlines, `[T, 6]` and `[T, 4, 4h, 4w]` as [`Truth`](super::attribute_head::Truth) has them; sometimes the latents of the same
/// clip with one attribute exchanged, and which.
pub struct Entry {
    pub latents: Tensor,
    /// Whether the clip is the beginning of its scene, so that a window may begin with it out of nothing.
    pub begins: bool,
    pub weights: Tensor,
    pub attributes: Attributes,
    /// Whether it shows a collage, whose style is its only attribute.
    pub collage: bool,
    pub places: Tensor,
    pub outlines: Tensor,
    pub other: Option<(Tensor, Exchanged)>,
}

/// A ring of clips of one shape.
pub struct Bucket {
    pub shape: Shape,
    entries: Vec<Entry>,
    capacity: usize,
    drawn: u64,
    /// Clips that are due but wait for others.
    due: usize,
    first_index: u64,
    /// Words of the world that every second clip shows one of.
    favoured: Vec<&'static str>,
    /// Whether its clips are collages.
    collages: bool,
}

/// How much nearer the object of the simplest stills is, and how much larger that of the simplest clips.
const NEAREST: f32 = 2.0;
const LARGEST: f32 = 0.5;
/// How much larger than the world's an object may be at any time: outlines are learnt where there is room for them.
const LARGER: f32 = 0.4;
/// How much more latents that the object touches count than others.
const OBJECT_WEIGHT: f32 = 8.0;
/// Share of the clips that show a scene at a later time than its beginning, and how many frames later at most: an object that left
/// takes up to three seconds to come in again and cross the frame, and goes on for ever in a stream.
const LATER: f32 = 0.5;
const LATEST: f32 = 96.0;
/// Share of those in which an object that left stays away for longer than in the world, and how many seconds at most: a stream in
/// which nothing came in again has to know that it does now.
const AWAY: f32 = 0.35;
const LONGEST_AWAY: f32 = 1.3;
/// Share of the collages in the plain look.
const PLAIN_COLLAGES: f32 = 0.08;
/// Frames encoded in one call.
const ENCODE_FRAMES: i64 = 33;

impl Bucket {
    /// An empty ring; its clips are those of the training split from `first_index` on, every second one showing one of the
    /// `favoured` words, where there are any.
    pub fn new(shape: Shape, capacity: usize, first_index: u64, favoured: &[&'static str]) -> Self {
        let favoured = favoured.to_vec();
        let (entries, collages) = (Vec::new(), false);
        Self { shape, entries, capacity, drawn: 0, due: 0, first_index, favoured, collages }
    }

    /// The same of collages.
    pub fn of_collages(self) -> Self {
        Self { collages: true, ..self }
    }

    /// Clips held.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether no clip is held.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Draws and encodes `count` more clips as soon as at least `at_once` are due; the oldest make room. They are simpler than the
    /// world by `ease`, 0 to 1. What is kept is in main memory.
    pub fn refresh(
        &mut self,
        vae: &AutoencoderKLWan,
        (count, at_once): (usize, usize),
        ease: f32,
        device: Device,
    ) {
        let _no_grad = tch::no_grad_guard();
        let most = at_once.max((ENCODE_FRAMES / self.shape.frames) as usize);
        self.due += count;
        while self.due >= at_once.max(1) {
            let now = self.due.min(most);
            let scenes: Vec<Scene> = (0..now as u64)
                .map(|i| {
                    let index = self.first_index + self.drawn + i;
                    let scene = Scene::favouring(index, Split::Train, &self.favoured);
                    match self.collages {
                        true => collage(scene),
                        false => {
                            away(simpler(scene, ease, self.shape.frames == 1), self.shape.frames)
                        }
                    }
                })
                .collect();
            let still = self.shape.frames == 1;
            let others: Vec<_> = scenes.iter().map(|scene| exchanged(scene, still)).collect();
            let drawn = scenes.iter().chain(others.iter().flatten().map(|(scene, _)| scene));
            let latents = self.encoded(vae, drawn, device);
            let mut others_latents = (now as i64..).map(|at| latents.get(at).contiguous());
            for (i, (scene, other)) in scenes.iter().zip(&others).enumerate() {
                let latents = latents.get(i as i64).contiguous();
                let other = other.and_then(|(_, what)| Some((others_latents.next()?, what)));
                let entry = self.entry(scene, latents, other);
                let at = (self.drawn % self.capacity as u64) as usize;
                self.drawn += 1;
                if self.entries.len() < self.capacity {
                    self.entries.push(entry)
                } else {
                    self.entries[at] = entry
                }
            }
            self.due -= now;
        }
    }

    /// Normalised latents `[B, z, T, h, w]` of scenes.
    fn encoded<'a>(
        &self,
        vae: &AutoencoderKLWan,
        scenes: impl Iterator<Item = &'a Scene>,
        device: Device,
    ) -> Tensor {
        let Shape { width, height, frames } = self.shape;
        let clips: Vec<Tensor> = scenes
            .map(|scene| render(scene, (width, height), frames, first(scene, frames)))
            .collect();
        let video = Tensor::stack(&clips, 0).to_device(device);
        let latents = vae.encode(&video, &mut FeatureCaches::default()).mean;
        vae.normalize_latents(&latents).to_device(Device::Cpu)
    }

    fn entry(&self, scene: &Scene, latents: Tensor, other: Option<(Tensor, Exchanged)>) -> Entry {
        let size = latents.size();
        let aspect = self.shape.width as f32 / self.shape.height as f32;
        let first = first(scene, self.shape.frames);
        Entry {
            begins: first == 0,
            weights: object_weights(scene, first, &size),
            attributes: scene.attributes,
            collage: scene.collage,
            places: places(scene, first, size[1], aspect),
            outlines: outlines(scene, first, &size),
            latents,
            other,
        }
    }

    /// The clip at a random number.
    pub fn pick(&self, random: u64) -> &Entry {
        &self.entries[(random % self.entries.len() as u64) as usize]
    }
}

/// A scene as training sees it: its object often larger, and the easier to learn the more `ease` there is, 0 to 1: larger still
/// (in stills nearer, which brings it to the middle as well), and more often in the plain look, as most styles change
/// colours. Its seed decides by how much.
fn simpler(mut scene: Scene, ease: f32, still: bool) -> Scene {
    let mut draws = Draws::new(mix64(scene.seed ^ 0x51e9));
    let more = ease * draws.unit();
    if still {
        scene.nearness = 1.0 + NEAREST * more;
    } else {
        scene.radius *= 1.0 + LARGEST * more;
    }
    let plain = Attributes { style: Style::None, ..scene.attributes };
    if draws.unit() < 0.5 * ease && !plain.held_out() {
        scene.attributes = plain;
    }
    scene.radius *= 1.0 + LARGER * draws.unit();
    scene
}

/// A collage in place of a scene, most of them in a style. The scene's seed decides.
fn collage(scene: Scene) -> Scene {
    let mut draws = Draws::new(mix64(scene.seed ^ 0xc011));
    let style = match draws.unit() < PLAIN_COLLAGES {
        true => Style::None,
        false => Style::ALL[1 + draws.below(Style::ALL.len() - 1)],
    };
    Scene { collage: true, attributes: Attributes { style, ..scene.attributes }, ..scene }
}

/// A scene whose object may stay away for longer, if its clip of so many frames shows it later. The scene's seed decides.
fn away(scene: Scene, frames: i64) -> Scene {
    let mut draws = Draws::new(mix64(scene.seed ^ 0x7a11));
    let longer = draws.unit() < AWAY && first(&scene, frames) > 0;
    Scene { absence: if longer { LONGEST_AWAY * draws.unit() } else { 0.0 }, ..scene }
}

/// The frame of a scene that its clip of so many begins with; stills and collages begin where their scene does. The scene's seed decides.
fn first(scene: &Scene, frames: i64) -> i64 {
    let mut draws = Draws::new(mix64(scene.seed ^ 0x1a7e));
    let later = frames > 1 && !scene.collage && draws.unit() < LATER;
    if later { 1 + (draws.unit() * LATEST) as i64 } else { 0 }
}

/// Weights `[1, T, h, w]` for latents `[z, T, h, w]` of a clip that begins with frame `first` of its scene: those that the object
/// touches count more, and frames that it stays away from not at all, as that is not to be learnt but to be met. All of a collage
/// counts alike.
fn object_weights(scene: &Scene, first: i64, size: &[i64]) -> Tensor {
    let (frames, height, width) = (size[1], size[2], size[3]);
    let mut weights = vec![1.0; (frames * height * width) as usize];
    if scene.collage {
        return Tensor::from_slice(&weights).view([1, frames, height, width]);
    }
    // Latent frame 0 is one frame of video, every other is four.
    for frame in 0..=4 * (frames - 1) {
        let start = (frame + 3) / 4 * height * width;
        let plane = &mut weights[start as usize..][..(height * width) as usize];
        let seconds = (first + frame) as f64 / FRAME_RATE;
        emphasis::mark(plane, width as usize, scene, seconds, OBJECT_WEIGHT);
    }
    for plane in weights.chunks_exact_mut((height * width) as usize) {
        if plane.iter().all(|weight| *weight < OBJECT_WEIGHT) {
            plane.fill(0.0);
        }
    }
    Tensor::from_slice(&weights).view([1, frames, height, width])
}

/// Where the object is in each latent frame of a clip that begins with frame `first`, and how that changes within it, `[T, 6]`.
fn places(scene: &Scene, first: i64, frames: i64, aspect: f32) -> Tensor {
    let at = |frame: f64| {
        let seconds = (first as f64 + frame) / FRAME_RATE;
        let Placement { x, y, radius } = scene.placement(seconds, aspect);
        [x, y, radius]
    };
    let mut places = Vec::new();
    for frame in 0..frames {
        // The first latent frame is one frame of video, every other is four.
        let middle = if frame == 0 { 0.0 } else { (4 * frame) as f64 - 1.5 };
        let (before, after) = (at((middle - 2.0).max(0.0)), at((middle - 2.0).max(0.0) + 4.0));
        places.extend(at(middle));
        places.extend((0..3).map(|i| after[i] - before[i]));
    }
    Tensor::from_slice(&places).view([frames, PLACE])
}

/// What the object covers of the cells of each frame of each latent frame of a clip that begins with frame `first`,
/// `[T, 4, 4h, 4w]`, 0 to 255.
fn outlines(scene: &Scene, first: i64, size: &[i64]) -> Tensor {
    let (frames, height, width) = (size[1], OUTLINE_CELLS * size[2], OUTLINE_CELLS * size[3]);
    let mut outlines = vec![0; (frames * OUTLINE_FRAMES * height * width) as usize];
    for (at, plane) in (0..).zip(outlines.chunks_exact_mut((height * width) as usize)) {
        let (latent, frame) = (at / OUTLINE_FRAMES, at % OUTLINE_FRAMES);
        // The first latent frame is one frame of video, here four times, every other is four.
        let frame = if latent == 0 { 0 } else { OUTLINE_FRAMES * (latent - 1) + 1 + frame };
        let seconds = (first + frame) as f64 / FRAME_RATE;
        emphasis::outline(plane, width as usize, scene, seconds);
    }
    Tensor::from_slice(&outlines).view([frames, OUTLINE_FRAMES, height, width])
}

#[cfg(test)]
mod tests {
    use tch::Kind;

    use super::super::world::Motion;
    use super::*;

    #[test]
    fn what_begins_simple_is_larger_and_never_held_out() {
        for index in 0..300 {
            let scene = Scene::from_index(index, Split::Train);
            let plain = simpler(scene, 0.0, true);
            assert_eq!(plain, simpler(scene, 0.0, false));
            assert!((1.0..=1.0 + LARGER).contains(&(plain.radius / scene.radius)));
            assert_eq!(plain, Scene { radius: plain.radius, ..scene });
            for still in [true, false] {
                let simple = simpler(scene, 1.0, still);
                let radius = |scene: &Scene| scene.placement(0.3, 1.75).radius;
                assert!(radius(&simple) >= radius(&scene));
                assert!(!simple.attributes.held_out());
                assert_eq!(simple.attributes.motion, scene.attributes.motion);
            }
        }
    }

    #[test]
    fn half_of_the_clips_show_what_comes_later() {
        let scenes: Vec<Scene> =
            (0..400).map(|index| Scene::from_index(index, Split::Train)).collect();
        assert!(scenes.iter().all(|scene| first(scene, 1) == 0));
        let firsts: Vec<i64> = scenes.iter().map(|scene| first(scene, 33)).collect();
        assert!(firsts.iter().all(|first| (0..=96).contains(first)));
        let later = firsts.iter().filter(|first| **first > 0).count();
        assert!((160..240).contains(&later), "{later}");
        for scene in &scenes {
            // What stands in for a clip shows the same moment.
            let other = exchanged(scene, false).map_or(*scene, |(other, _)| other);
            assert_eq!(first(&other, 33), first(scene, 33));
            // The second latent frame is four frames after the first four.
            let size = [48, 5, 4, 7];
            let (now, then) = (places(scene, 8, 4, 1.75), places(scene, 12, 4, 1.75));
            let same = |a: &Tensor, b: &Tensor| a.narrow(0, 2, 2).equal(&b.narrow(0, 1, 2));
            assert!(same(&now, &then));
            let (now, then) = (outlines(scene, 8, &size), outlines(scene, 12, &size));
            assert!(same(&now, &then));
            let weights = |first| object_weights(scene, first, &size).squeeze_dim(0);
            assert!(same(&weights(8), &weights(12)));
        }
    }

    #[test]
    fn an_object_that_left_may_stay_away_for_longer() {
        let scenes = (0..400).map(|index| Scene::from_index(index, Split::Train));
        let away: Vec<Scene> = scenes.map(|scene| away(scene, 33)).collect();
        let longer: Vec<&Scene> = away.iter().filter(|scene| scene.absence > 0.0).collect();
        assert!((50..90).contains(&longer.len()), "{}", longer.len());
        assert!(longer.iter().all(|scene| first(scene, 33) > 0 && scene.absence < LONGEST_AWAY));
        let seen = |scene: &Scene| {
            let place = |tenth: u32| scene.placement(f64::from(tenth) / 10.0, 1.75);
            let inside = |tenth: &u32| {
                let Placement { x, y, .. } = place(*tenth);
                (0.0..=1.0).contains(&x) && (0.0..=1.0).contains(&y)
            };
            (0..600).filter(inside).count()
        };
        for scene in longer {
            let (less, world) = (seen(scene), seen(&Scene { absence: 0.0, ..*scene }));
            let leaves = world < 600;
            assert!(if leaves { less <= world + 2 } else { less == world }, "{scene:?}");
            assert!(!leaves || scene.absence < 0.1 || less + 8 < world, "{scene:?}");
        }
    }

    #[test]
    fn what_stays_away_is_met_but_not_learnt() {
        let size = [48, 9, 8, 14];
        let weights = |scene: &Scene| object_weights(scene, 0, &size);
        let empty = |weights: &Tensor| {
            let most = weights.amax([0i64, 2, 3].as_slice(), false);
            (0..9).filter(|at| most.double_value(&[*at]) == 0.0).collect::<Vec<_>>()
        };
        let mut scene = Scene::from_index(3, Split::Train);
        scene.attributes.motion = Motion::Falling;
        (scene.start, scene.amount, scene.radius) = ([0.5, 0.7], 0.5, 0.15);
        assert_eq!(empty(&weights(&scene)), Vec::<i64>::new());
        // It leaves after 0.9 s, is away for 0.9 more and comes in again.
        let gone = Scene { absence: 0.9, ..scene };
        assert_eq!(empty(&weights(&gone)), [5, 6, 7]);
        let of = |scene: &Scene| weights(scene).narrow(1, 0, 4);
        assert!(of(&gone).equal(&of(&scene)));
    }

    #[test]
    fn collages_begin_with_their_clip_and_count_everywhere() {
        let mut plain = 0;
        for index in 0..300 {
            let scene = collage(Scene::from_index(index, Split::Train));
            assert!(scene.collage && first(&scene, 33) == 0);
            plain += usize::from(scene.attributes.style == Style::None);
            let weights = object_weights(&scene, 0, &[48, 3, 4, 7]);
            assert_eq!(weights.sum(Kind::Float).double_value(&[]), 84.0);
        }
        assert!((8..50).contains(&plain), "{plain}");
    }

    #[test]
    fn weights_follow_the_object() {
        let mut scene = Scene::from_index(3, Split::Train);
        scene.attributes.motion = Motion::MovingRight;
        scene.start = [0.25, 0.5];
        scene.amount = 0.5;
        scene.radius = 0.15;
        let weights = object_weights(&scene, 0, &[48, 5, 8, 14]);
        assert_eq!(weights.size(), [1, 5, 8, 14]);
        let heavy = weights.gt(1.0);
        let places = places(&scene, 0, 5, 1.75);
        for (at, expected) in [([0, 0], 0.25), ([0, 3], 0.125), ([4, 0], 0.25 + 0.5 * 14.5 / 16.0)]
        {
            assert!((places.double_value(&at) - expected).abs() < 1e-4, "{at:?}");
        }
        let columns = Tensor::arange(14, (Kind::Float, Device::Cpu));
        let centre = |t: i64| {
            let mask = heavy.get(0).get(t).to_kind(Kind::Float);
            (&mask * &columns).sum(Kind::Float).double_value(&[])
                / mask.sum(Kind::Float).double_value(&[])
        };
        assert!((centre(0) - 3.0).abs() < 1.0, "{}", centre(0));
        assert!(centre(4) > centre(0) + 4.0, "{} {}", centre(0), centre(4));
        let outlines = outlines(&scene, 0, &[48, 5, 8, 14]);
        assert_eq!(outlines.size(), [5, 4, 32, 56]);
        // A disc would cover three parts of a hundred of the frame; no shape reaches beyond the heavy latents.
        let covered = outlines.to_kind(Kind::Float) / 255.0;
        let area = covered.mean(Kind::Float).double_value(&[]);
        assert!((0.01..0.05).contains(&area), "{area}");
        let bare = heavy.squeeze_dim(0).logical_not().to_kind(Kind::Float);
        let bare = bare.repeat_interleave_self_int(4, 1, None);
        let bare = bare.repeat_interleave_self_int(4, 2, None);
        assert!((covered.amax([1i64], false) * bare).max().double_value(&[]) < 0.01);
        let share = heavy.to_kind(Kind::Float).mean(Kind::Float).double_value(&[]);
        assert!((0.05..0.35).contains(&share), "{share}");
    }
}

// SPDX-License-Identifier: MPL-2.0
//! Video to video: encoding as frames come, whole clips as the reference has them, and chunks that continue each other.

mod common;

use std::cell::Cell;

use common::{FOLDERS, deviation, fixture, load, rolling_folders, with_native};
use gstdit::error::Error;
use gstdit::nn::conv3d::FeatureCaches;
use gstdit::pipeline::{
    Denoiser, EmbeddingCache, Embeddings, Guidance, NoiseKind, Pipeline, Prompts, RestyleControls,
    Restyler, RgbFrame, StartLevel, VideoEncoder, Window, blend_embeddings, counter_noise,
    rgb_frames, video_of,
};
use serde_json::json;
use tch::{Device, Kind, Tensor};

/// f32 rounding, with sums in another order.
const TOLERANCE: f64 = 1e-5;

fn never() -> bool {
    false
}

/// Something that moves, `[1, 3, F, 32, 32]` in [-1, 1].
fn clip(frames: i64) -> Tensor {
    let axis = |length: i64| Tensor::arange(length, (Kind::Float, Device::Cpu));
    let (t, y, x) = (axis(frames), axis(32), axis(32));
    let wave = t.view([-1, 1, 1]) * 0.4 + y.view([1, -1, 1]) * 0.2 + x.view([1, 1, -1]) * 0.3;
    Tensor::stack(&[wave.sin(), (&wave * 0.7).cos(), (wave * 1.3).sin()], 0).unsqueeze(0)
}

fn embeddings(pipeline: &Pipeline, prompt: &str) -> Embeddings {
    EmbeddingCache::default().pair(pipeline, (prompt, "grey"), Some(3.0)).unwrap()
}

fn controls(embeddings: &Embeddings, start_level: StartLevel) -> RestyleControls<'_> {
    RestyleControls {
        embeddings,
        guidance_scale: Some(3.0),
        seed: 5,
        num_inference_steps: 4,
        start_level,
    }
}

#[test]
fn a_stream_encodes_as_the_whole() {
    let _guard = tch::no_grad_guard();
    for name in FOLDERS {
        let pipeline = load(&fixture(name));
        let video = clip(21);
        let whole = pipeline.encode_video(&video);
        for pieces in [vec![6], vec![1, 1, 1, 1, 1, 1], vec![2, 3, 1], vec![1, 5]] {
            let mut encoder = VideoEncoder::default();
            let (mut from, mut latents) = (0, Vec::new());
            for latent_frames in &pieces {
                let frames = encoder.frames_for(&pipeline, *latent_frames);
                let piece = video.narrow(2, from, frames);
                // What was cancelled is as if it had not been tried.
                let cancelled = encoder.encode(&pipeline, &piece, &|| true);
                assert!(matches!(cancelled, Err(Error::Cancelled)));
                latents.push(encoder.encode(&pipeline, &piece, &never).unwrap());
                from += frames;
            }
            assert_eq!(from, 21);
            let off = deviation(&whole, &Tensor::cat(&latents, 2)).unwrap();
            assert!(off < TOLERANCE, "{name}, {pieces:?}: off by {off:.1e}");
        }
        let mut encoder = VideoEncoder::default();
        assert!(matches!(encoder.encode(&pipeline, &clip(3), &never), Err(Error::Setting { .. })));
    }
}

#[test]
fn a_whole_clip_equals_the_pipeline() {
    let _guard = tch::no_grad_guard();
    for folder in
        rolling_folders().iter().filter(|folder| !load(folder.path()).info().native.causal)
    {
        let pipeline = load(folder.path());
        let guide = pipeline.encode_video(&clip(9));
        let embeddings = embeddings(&pipeline, "a fox");
        let s = guide.size();
        let noise = |number| counter_noise(5, 0, number, [s[1], s[2], s[3], s[4]]);
        for (strength, begin_index) in [(1.0, 0), (0.8, 1), (0.5, 2), (0.25, 3)] {
            let schedule = pipeline.info().scheduler.set_timesteps(4, None).unwrap();
            let prompts =
                Prompts::new(&pipeline, &embeddings.positive, embeddings.negative.as_ref(), None);
            let denoiser = Denoiser {
                pipeline: &pipeline,
                prompts: &prompts,
                guidance: Guidance { scale: 3.0, scale_2: 3.0 },
                schedule: &schedule,
                cancel: &never,
            };
            let window = Window {
                latents: schedule.add_noise(&guide, &noise(0), begin_index),
                known: None,
                condition: None,
                control: None,
                frame_offset: 0,
                begin_index,
                noise: Box::new(noise),
            };
            let latents = denoiser.run(&window, None, &mut |_| {}).unwrap();
            let mut caches = FeatureCaches::default();
            let expected = pipeline.decode_latents(&latents, &mut caches, &never).unwrap();
            let mut restyler = Restyler::new(&pipeline, (32, 32), NoiseKind::Counter).unwrap();
            let controls = controls(&embeddings, StartLevel::Strength(strength));
            let restyled = restyler.next_chunk(&pipeline, &guide, &controls, &never).unwrap();
            let off = deviation(&expected, &restyled.video).unwrap();
            assert!(off < TOLERANCE, "strength {strength}: off by {off:.1e}");
        }
    }
}

/// A strength walks the levels that its folder has for it, and a noise level those of the scheduler.
#[test]
fn a_folder_may_have_levels_of_its_own_for_strengths() {
    let _guard = tch::no_grad_guard();
    let folder = |levels: serde_json::Value| {
        let native = json!({"num_frames": 13, "causal": true, "restyle_sigmas": levels});
        with_native("ti2v_public", native)
    };
    let first = |folder: &tempfile::TempDir, level: StartLevel| {
        let pipeline = load(folder.path());
        let guide = pipeline.encode_video(&clip(1));
        let embeddings = embeddings(&pipeline, "a fox");
        let mut restyler = Restyler::new(&pipeline, (32, 32), NoiseKind::Counter).unwrap();
        let controls = controls(&embeddings, level);
        restyler.next_chunk(&pipeline, &guide, &controls, &never).unwrap().video
    };
    let walked = |folder: &tempfile::TempDir, level: StartLevel| {
        let whole = level.schedule(load(folder.path()).info(), 4).unwrap();
        let (schedule, begin) = level.place(&whole).unwrap();
        schedule.sigmas[begin..].to_vec()
    };
    let none = folder(json!(null));
    let own = walked(&none, StartLevel::Strength(1.0));
    let [_, second, third, fourth, last] = own[..] else { panic!("{own:?}") };
    let between = 0.5 * (second + third);
    let lower = folder(json!([1.0, between, third, fourth]));
    let (strength, level) = (StartLevel::Strength(0.75), StartLevel::Noise(between.into()));
    assert_eq!(walked(&none, strength), [second, third, fourth, last]);
    for (folder, level) in [(&lower, strength), (&lower, level), (&none, level)] {
        assert_eq!(walked(folder, level), [between, third, fourth, last]);
    }
    let off = |a: &Tensor, b: &Tensor| deviation(a, b).unwrap();
    assert!(off(&first(&lower, level), &first(&none, level)) < TOLERANCE);
    assert!(off(&first(&lower, strength), &first(&none, strength)) > 1e-3);
}

/// A stream's first block, and no other, walks the steps of a greater strength where the folder has one.
#[test]
fn a_folder_may_begin_streams_with_a_greater_strength() {
    let _guard = tch::no_grad_guard();
    let beginning_with = |strength: f64| {
        let native = json!({
            "num_frames": 13, "causal": true, "block_latent_frames": 1,
            "restyle_first_strength": strength
        });
        with_native("ti2v_public", native)
    };
    // A chunk of so many frames, the start of a stream, as another folder makes it and as one that begins with 0.75 does.
    let made = |folder: &tempfile::TempDir, level: StartLevel, frames: i64| {
        let pipeline = load(folder.path());
        let guide = pipeline.encode_video(&clip(frames));
        let embeddings = embeddings(&pipeline, "a fox");
        let mut restyler = Restyler::new(&pipeline, (32, 32), NoiseKind::Counter).unwrap();
        let controls = controls(&embeddings, level);
        restyler.next_chunk(&pipeline, &guide, &controls, &never).unwrap().video
    };
    let (none, some) = (beginning_with(0.0), beginning_with(0.75));
    let off = |a: &Tensor, b: &Tensor| deviation(a, b).unwrap();
    let [less, same, more] = [0.5, 0.75, 1.0].map(StartLevel::Strength);
    assert!(off(&made(&some, less, 1), &made(&none, same, 1)) < TOLERANCE);
    assert!(off(&made(&some, less, 1), &made(&none, less, 1)) > 1e-3);
    for level in [same, more, StartLevel::Noise(0.5)] {
        assert!(off(&made(&some, level, 5), &made(&none, level, 5)) < TOLERANCE, "{level:?}");
    }
    // Two blocks at once begin as one does, and the second is not the one that all of the greater strength would have made.
    let two = made(&some, less, 5);
    assert!(off(&two.narrow(2, 0, 1), &made(&some, less, 1)) < TOLERANCE);
    assert!(off(&two, &made(&none, same, 5)) > 1e-3);
}

/// Chunks of the given numbers of latent frames.
fn restyled(pipeline: &Pipeline, prompts: &[&str], level: StartLevel) -> Vec<Tensor> {
    let mut encoder = VideoEncoder::default();
    let mut restyler = Restyler::new(pipeline, (32, 32), NoiseKind::Counter).unwrap();
    let (video, mut from) = (clip(21), 0);
    let mut chunks = Vec::new();
    for prompt in prompts {
        let frames = encoder.frames_for(pipeline, 2);
        let piece = video.narrow(2, from, frames);
        from += frames;
        let guide = encoder.encode(pipeline, &piece, &never).unwrap();
        let embeddings = embeddings(pipeline, prompt);
        let controls = controls(&embeddings, level);
        // Ever more patience, until the chunk gets through: what was cancelled leaves no trace.
        let mut patience = 0;
        loop {
            let asked = Cell::new(0);
            let cancel = || {
                asked.set(asked.get() + 1);
                asked.get() > patience
            };
            match restyler.next_chunk(pipeline, &guide, &controls, &cancel) {
                Ok(chunk) => break chunks.push(chunk.video),
                Err(Error::Cancelled) => patience = patience * 2 + 7,
                Err(other) => panic!("{other}"),
            }
        }
    }
    chunks
}

#[test]
fn chunks_follow_seed_prompts_and_level() {
    let _guard = tch::no_grad_guard();
    for folder in rolling_folders() {
        let pipeline = load(folder.path());
        let level = StartLevel::Strength(0.75);
        let stream = restyled(&pipeline, &["a fox", "a fox", "the sea"], level);
        let frames: Vec<i64> = stream.iter().map(|chunk| chunk.size()[2]).collect();
        assert_eq!(frames, [5, 8, 8]);
        let again = restyled(&pipeline, &["a fox", "a fox", "a fox"], level);
        assert_eq!(stream[1], again[1]);
        assert_ne!(stream[2], again[2]);
        let lower = restyled(&pipeline, &["a fox"; 3], StartLevel::Noise(0.3));
        assert_ne!(stream[0], lower[0]);
    }
}

/// As [`restyled`], of one latent frame a chunk, `depth` of them denoised together.
fn staggered(pipeline: &Pipeline, prompts: &[&str], depth: usize) -> Vec<Tensor> {
    let mut encoder = VideoEncoder::default();
    let mut restyler = Restyler::together(pipeline, (32, 32), NoiseKind::Counter, depth).unwrap();
    let (video, mut from) = (clip(21), 0);
    let mut chunks = Vec::new();
    for prompt in prompts {
        let frames = encoder.frames_for(pipeline, 1);
        let guide = encoder.encode(pipeline, &video.narrow(2, from, frames), &never).unwrap();
        from += frames;
        let embeddings = embeddings(pipeline, prompt);
        let controls = controls(&embeddings, StartLevel::Strength(0.75));
        let finished = restyler.push(pipeline, &guide, &controls, &never).unwrap();
        chunks.extend(finished.into_iter().map(|chunk| chunk.video));
    }
    let finished = restyler.finish(pipeline, &never).unwrap();
    chunks.into_iter().chain(finished.into_iter().map(|chunk| chunk.video)).collect()
}

#[test]
fn chunks_denoised_together_come_out_whole() {
    let _guard = tch::no_grad_guard();
    let folders = rolling_folders();
    let pipelines = folders.iter().map(|folder| load(folder.path()));
    let pipelines: Vec<_> = pipelines.filter(|it| it.info().can_stagger()).collect();
    assert_eq!(pipelines.len(), 4, "the folders whose frames have timesteps of their own");
    for pipeline in &pipelines {
        let same = ["a fox"; 5];
        let frames = |chunks: &[Tensor]| chunks.iter().map(|it| it.size()[2]).collect::<Vec<_>>();
        for depth in [1, 2, 3, 5, 9] {
            assert_eq!(frames(&staggered(pipeline, &same, depth)), [1, 4, 4, 4, 4], "{depth}");
        }
        // Chunks look at each other, and depend on nothing else.
        let together = staggered(pipeline, &same, 3);
        assert_ne!(together[1], staggered(pipeline, &same, 1)[1]);
        assert_eq!(together, staggered(pipeline, &same, 3));
        // Other words finish first what was begun with the old ones.
        let other = staggered(pipeline, &["a fox", "a fox", "the sea"], 3);
        assert_eq!(other[..2], staggered(pipeline, &["a fox"; 2], 3));
        assert_ne!(other[2], together[2]);
    }
}

#[test]
fn folders_of_one_noise_level_take_chunks_one_by_one() {
    let pipeline = load(&fixture("t2v_public"));
    assert!(!pipeline.info().can_stagger());
    let refused = Restyler::together(&pipeline, (32, 32), NoiseKind::Counter, 2).unwrap_err();
    assert!(refused.to_string().contains("stream-batch"), "{refused}");
}

#[test]
fn little_noise_changes_little() {
    let _guard = tch::no_grad_guard();
    for name in FOLDERS {
        let pipeline = load(&fixture(name));
        let guide = pipeline.encode_video(&clip(5));
        let mut caches = FeatureCaches::default();
        let unchanged = pipeline.decode_latents(&guide, &mut caches, &never).unwrap();
        let embeddings = embeddings(&pipeline, "a fox");
        let distance = |level: f64| {
            let mut restyler = Restyler::new(&pipeline, (32, 32), NoiseKind::Counter).unwrap();
            let controls = controls(&embeddings, StartLevel::Noise(level));
            let chunk = restyler.next_chunk(&pipeline, &guide, &controls, &never).unwrap();
            (chunk.video - &unchanged).abs().mean(Kind::Float).double_value(&[])
        };
        let (little, much) = (distance(0.001), distance(0.9));
        assert!(little < 0.01 && little < much, "{name}: {little} and {much}");
        let wrong = StartLevel::Noise(0.0).place(&schedule(&pipeline)).unwrap_err();
        assert!(wrong.to_string().contains("noise level"), "{wrong}");
        let wrong = StartLevel::Strength(0.1).place(&schedule(&pipeline)).unwrap_err();
        assert!(wrong.to_string().contains("strength"), "{wrong}");
    }
}

fn schedule(pipeline: &Pipeline) -> gstdit::schedulers::Schedule {
    pipeline.info().scheduler.set_timesteps(4, None).unwrap()
}

#[test]
fn embeddings_blend_from_one_end_to_the_other() {
    let (a, b) = (
        Tensor::from_slice(&[3.0f32, 0.0, 0.0, 0.0]).view([1, 2, 2]),
        Tensor::from_slice(&[0.0f32, 5.0, 0.0, 0.0]).view([1, 2, 2]),
    );
    assert_eq!(blend_embeddings(&a, &b, 0.0), a);
    assert_eq!(blend_embeddings(&a, &b, 1.0), b);
    let middle = Vec::<f32>::try_from(blend_embeddings(&a, &b, 0.5).flatten(0, -1)).unwrap();
    let length = middle[0].hypot(middle[1]);
    // Between 3 and 5, and padding stays zero.
    assert!((length - 4.0).abs() < 1e-5 && middle[2..] == [0.0, 0.0], "{middle:?}");
}

#[test]
fn frames_go_in_as_they_come_out() {
    let frame = |shift: u8| RgbFrame {
        width: 19,
        height: 17,
        data: (0..19 * 17 * 3).map(|i: u32| (i % 251) as u8 ^ shift).collect(),
    };
    let frames = [frame(0), frame(3)];
    let video = video_of(&frames, (32, 32)).unwrap();
    assert_eq!(video.size(), [1, 3, 2, 32, 32]);
    assert_eq!(rgb_frames(&video, (19, 17)), frames);
    let other = RgbFrame { width: 1, height: 1, data: vec![0; 3] };
    assert!(matches!(video_of([&frames[0], &other], (32, 32)), Err(Error::Setting { .. })));
}

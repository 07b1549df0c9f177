// SPDX-License-Identifier: MPL-2.0
//! `ditmixer` with a model: what lies between two streams, bridges, latency, live streams, errors, leaks.

#[path = "support/mixer.rs"]
mod mixer;
mod support;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use gst::prelude::*;
use mixer::{MixRig, Output, RATE, SIZE, STEP, a, b, on_time, picture, rgb};
use support::checks::nothing_left_behind;
use support::{Native, TINY, folder_with, init};

struct Model {
    _parent: tempfile::TempDir,
    folder: PathBuf,
}

fn model(native: Native) -> Model {
    let parent = tempfile::tempdir().unwrap();
    let folder = folder_with(parent.path(), "ti2v_public", native);
    Model { _parent: parent, folder }
}

fn properties(folder: &Path, more: &str) -> String {
    format!("model-path={} device=cpu {more}", folder.display())
}

fn rig(model: &Model, more: &str) -> MixRig {
    MixRig::pair(&properties(&model.folder, more))
}

/// Two streams of `frames` frames through a mixer with these properties.
fn mixed(model: &Model, more: &str, frames: u64) -> Vec<Output> {
    let rig = rig(model, more);
    rig.start();
    rig.push(0..frames);
    rig.finish()
}

const SWEEP: &str = "transition-at=80000000 transition-duration=400000000 transition-easing=linear";

#[test]
fn both_ends_are_exactly_the_streams_and_the_middle_is_neither() {
    let _serial = init();
    let model = model(TINY);
    for (mix, stream) in [(0, a as fn(u64) -> Vec<u8>), (1, b)] {
        let outputs = mixed(&model, &format!("mix={mix}"), 9);
        assert_eq!(outputs.len(), 9);
        for (index, output) in outputs.iter().enumerate() {
            assert_eq!(output.data, stream(index as u64), "mix={mix} frame {index}");
        }
    }
    let crossfade = mixed(&model, &format!("mode=crossfade {SWEEP}"), 30);
    let outputs = mixed(&model, SWEEP, 30);
    assert_eq!(outputs.len(), 30);
    on_time(&outputs, RATE);
    for (index, (output, crossfade)) in outputs.iter().zip(&crossfade).enumerate() {
        let frame = index as u64;
        match frame {
            0..=2 => assert_eq!(output.data, a(frame), "frame {frame}"),
            3..=11 => assert_ne!(output.data, crossfade.data, "frame {frame}"),
            _ => assert_eq!(output.data, b(frame), "frame {frame}"),
        }
    }
}

#[test]
fn the_same_seed_gives_the_same_bytes_however_it_is_fed() {
    let _serial = init();
    let model = model(TINY);
    let more = format!("{SWEEP} seed=3 prompt=\"a fox\"");
    let once = mixed(&model, &more, 20);
    assert_eq!(once, mixed(&model, &more, 20));
    assert_ne!(once, mixed(&model, &format!("{SWEEP} seed=4 prompt=\"a fox\""), 20));
    // Frame by frame, each waited for where the model does not hold it back.
    let rig = rig(&model, &more);
    rig.start();
    for frame in 0..20 {
        rig.push(frame..frame + 1);
        if frame == 1 {
            rig.wait_frames(1);
        }
    }
    assert_eq!(once, rig.finish());
}

#[test]
fn prompts_of_the_pads_and_creativity_make_a_difference() {
    let _serial = init();
    let model = model(TINY);
    let plain = mixed(&model, "mix=0.5", 6);
    let prompted = {
        let rig = rig(&model, "mix=0.5");
        rig.inputs[1].pad().set_property("prompt", "a red fox in the snow");
        rig.start();
        rig.push(0..6);
        rig.finish()
    };
    assert_ne!(plain[3].data, prompted[3].data);
    assert_ne!(plain[3].data, mixed(&model, "mix=0.5 creativity=0.1", 6)[3].data);
}

#[test]
fn streams_of_every_length_come_out_whole() {
    let _serial = init();
    let model = model(TINY);
    for frames in [1, 2, 4, 5, 6, 9, 13] {
        let outputs = mixed(&model, "mix=0.4", frames);
        assert_eq!(outputs.len(), frames as usize);
        on_time(&outputs, RATE);
    }
}

#[test]
fn new_caps_let_out_what_is_held_with_the_old_ones() {
    let _serial = init();
    let model = model(TINY);
    let rig = rig(&model, "mix=0.5");
    rig.start();
    rig.push(0..7);
    rig.inputs[0].caps(&rgb((128, 64), RATE));
    rig.inputs[0].push_frames(7..14, RATE, |frame| picture(10, frame, (128, 64)));
    rig.inputs[1].push_frames(7..14, RATE, b);
    let outputs = rig.finish();
    on_time(&outputs, RATE);
    let sizes: Vec<usize> = outputs.iter().map(|output| output.data.len()).collect();
    assert_eq!(sizes, [vec![64 * 32 * 3; 7], vec![128 * 64 * 3; 7]].concat());
}

/// A mixer whose model has work for seconds on the fastest of machines, for minutes on others.
fn at_work() -> (Model, MixRig) {
    let model = model(Native { steps: 1000, ..TINY });
    let rig = rig(&model, "mix=0.5 creativity=1");
    rig.start();
    rig.push(0..30);
    (model, rig)
}

#[track_caller]
fn is_quick(act: impl FnOnce()) {
    let begun = Instant::now();
    act();
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
}

#[test]
fn a_seek_while_the_model_is_at_work_is_quick_and_starts_anew() {
    let _serial = init();
    let (_model, rig) = at_work();
    is_quick(|| {
        rig.pipeline.seek_simple(gst::SeekFlags::FLUSH, gst::ClockTime::ZERO).unwrap();
    });
    rig.mixer.set_property("mix", 1.0f64);
    rig.take();
    rig.push(0..3);
    let outputs = rig.finish();
    assert_eq!(outputs.len(), 3);
    assert_eq!(outputs[2].data, b(2));
}

#[test]
fn going_down_while_the_model_is_at_work_is_quick() {
    let _serial = init();
    let (_model, rig) = at_work();
    is_quick(|| rig.stop());
}

#[test]
fn files_are_bridged_one_after_the_other() {
    let _serial = init();
    let model = model(TINY);
    let more = "mode=bridge transition-duration=320000000 seed=2";
    let play = || {
        let rig = rig(&model, more);
        rig.start();
        rig.inputs[0].push_frames(0..10, RATE, a);
        rig.inputs[1].push_frames(0..7, RATE, b);
        let outputs = rig.finish();
        (rig, outputs)
    };
    let (rig, outputs) = play();
    assert_eq!(outputs.len(), 10 + 8 + 7);
    on_time(&outputs, RATE);
    for (index, output) in outputs.iter().enumerate() {
        match index as u64 {
            frame @ 0..=9 => assert_eq!(output.data, a(frame), "frame {frame}"),
            10..=17 => assert!(output.data != a(9) && output.data != b(0), "frame {index}"),
            frame => assert_eq!(output.data, b(frame - 18), "frame {frame}"),
        }
    }
    let time = |name: &str| {
        rig.structures(name)[0].get::<gst::ClockTime>("running-time").unwrap().nseconds()
    };
    assert_eq!((time("dit-transition-start"), time("dit-transition-end")), (10 * STEP, 18 * STEP));
    assert_eq!(rig.mixer.property::<f64>("mix"), 1.0);
    assert_eq!(outputs, play().1);
    // Stopped and started again it begins with the first stream.
    rig.pipeline.set_state(gst::State::Ready).unwrap();
    assert_eq!(rig.mixer.property::<f64>("mix"), 0.0);
}

#[test]
fn the_stream_that_mix_is_nearer_to_comes_first_and_the_other_after_it() {
    let _serial = init();
    let model = model(TINY);
    let rig = rig(&model, "mode=bridge transition-duration=160000000 mix=0.9");
    rig.start();
    rig.push(0..6);
    let outputs = rig.finish();
    assert_eq!(outputs.len(), 6 + 4 + 6);
    on_time(&outputs, RATE);
    assert_eq!((&outputs[5].data, &outputs[15].data), (&b(5), &a(5)));
}

#[test]
fn a_bridge_that_is_asked_for_joins_streams_that_run_side_by_side() {
    let _serial = init();
    let model = model(TINY);
    let caps = rgb(SIZE, RATE);
    let line = format!(
        "ditmixer name=mixer {} ! fakesink name=sink signal-handoffs=true sync=false",
        properties(&model.folder, "mode=crossfade transition-duration=320000000")
    );
    let rig = MixRig::from_line(&line, &[&caps, &caps]);
    rig.start();
    rig.push(0..5);
    rig.wait_frames(4);
    // From here on nothing waits for its turn: both have begun.
    rig.mixer.set_property_from_str("mode", "bridge");
    assert!(rig.mixer.emit_by_name::<bool>("transition", &[&0u64]));
    rig.push(5..30);
    let outputs = rig.finish();
    on_time(&outputs, RATE);
    assert_eq!(outputs.len(), 30);
    let begin =
        outputs.iter().zip(0..).position(|(output, frame)| output.data != a(frame)).unwrap();
    for (index, output) in outputs.iter().enumerate() {
        let frame = index as u64;
        if (begin..begin + 8).contains(&index) {
            assert!(output.data != a(frame) && output.data != b(frame), "frame {frame}");
        } else {
            let expected = if index < begin { a(frame) } else { b(frame) };
            assert_eq!(output.data, expected, "frame {frame}");
        }
    }
}

fn latency_of(rig: &MixRig) -> u64 {
    let mut query = gst::query::Latency::new();
    assert!(rig.mixer.query(&mut query));
    query.result().1.nseconds()
}

#[test]
fn the_latency_holds_the_longest_bridge_that_was_asked_for() {
    let _serial = init();
    let model = model(TINY);
    let rig = rig(&model, "mode=bridge transition-duration=160000000");
    rig.start();
    rig.push(0..3);
    rig.wait_frames(2);
    // The bridge and four frames behind it are collected and made, out in one before it is due, and the base's own.
    let of_bridge = |gap: u64| ((gap + 4 - 1) + (gap + 4) + 1 + 1) * STEP;
    assert_eq!(latency_of(&rig), of_bridge(4));
    assert!(rig.mixer.emit_by_name::<bool>("transition", &[&(12 * STEP)]));
    rig.push(3..30);
    on_time(&rig.finish(), RATE);
    assert_eq!(latency_of(&rig), of_bridge(12));
}

#[test]
fn the_latency_is_that_of_the_mode() {
    let _serial = init();
    let model = model(TINY);
    let rig = rig(&model, "mode=crossfade");
    rig.start();
    rig.push(0..3);
    rig.wait_frames(2);
    let latency = || latency_of(&rig);
    assert_eq!(latency(), STEP);
    rig.mixer.set_property_from_str("mode", "interpolate");
    rig.push(3..9);
    rig.wait_frames(5);
    // A chunk of four is collected in three frames, made in four, out in one before it is due, and the base's own.
    assert_eq!(latency(), (3 + 4 + 1 + 1) * STEP);
    rig.finish();
}

/// A live mixer of test sources that make so many frames of a size, so many a second.
fn live(model: &Model, more: &str, size: (usize, usize), (frames, rate): (u32, u64)) -> MixRig {
    let source = |pattern: &str| {
        format!(
            "videotestsrc is-live=true num-buffers={frames} pattern={pattern} ! {} ! queue ! mixer.",
            rgb(size, (rate, 1))
        )
    };
    let line = format!(
        "ditmixer name=mixer {} ! fakesink name=sink signal-handoffs=true sync=true {} {}",
        properties(&model.folder, more),
        source("ball"),
        source("smpte")
    );
    let rig = MixRig::from_line(&line, &[]);
    rig.start();
    rig
}

/// Checks the times of a stream of so many frames a second.
#[track_caller]
fn without_gaps(outputs: &[Output], rate: u64) {
    for pair in outputs.windows(2) {
        assert_eq!(pair[1].pts - pair[0].pts, 1_000_000_000 / rate);
    }
}

#[test]
fn a_live_mix_keeps_its_times_and_shows_what_the_model_made() {
    let _serial = init();
    let model = model(TINY);
    // Much more time than the model needs, on a busy machine as well: what is missing then was collected too late.
    let rig = live(&model, "mix=0.5 steps=1 guidance-scale=1", SIZE, (20, 4));
    let outputs = rig.wait_end();
    assert!(outputs.len() >= 18, "{}", outputs.len());
    without_gaps(&outputs, 4);
    let stats: gst::Structure = rig.mixer.property("stats");
    let [frames, crossfaded] = ["frames", "crossfaded"].map(|name| stats.get::<u64>(name).unwrap());
    assert!(frames >= 18 && crossfaded * 2 < frames, "{crossfaded} of {frames}");
}

#[test]
fn a_live_mix_that_is_too_slow_crossfades_and_says_so() {
    let _serial = init();
    // So many steps of so large pictures would take minutes; at 64x32 a fast machine makes them in a third of a second.
    let model = model(Native { steps: 1000, ..TINY });
    let rig = live(&model, "mix=0.5 creativity=1 guidance-scale=3", (384, 192), (40, 10));
    let outputs = rig.wait_end();
    assert!(outputs.len() >= 38, "{}", outputs.len());
    without_gaps(&outputs, 10);
    let degraded = rig.structures("dit-degraded");
    assert!(!degraded.is_empty());
    assert_eq!(degraded[0].get::<String>("action").unwrap(), "crossfade");
    let qos = rig.messages().iter().filter(|it| it.type_() == gst::MessageType::Qos).count();
    assert!(qos > 10, "{qos}");
}

#[test]
fn a_live_stream_that_stalls_does_not_stall_the_mix() {
    let _serial = init();
    let model = model(TINY);
    let line = format!(
        "ditmixer name=mixer {} ! fakesink name=sink signal-handoffs=true sync=true \
         videotestsrc is-live=true num-buffers=25 ! {} ! queue ! mixer. \
         appsrc name=stalled is-live=true format=time caps=\"{}\" ! queue ! mixer.",
        properties(&model.folder, "mix=0.5"),
        rgb(SIZE, (10, 1)),
        rgb(SIZE, (10, 1)),
    );
    let rig = MixRig::from_line(&line, &[]);
    let stalled = mixer::Input(rig.pipeline.by_name("stalled").unwrap());
    rig.start();
    stalled.push_frames(0..3, (10, 1), a);
    rig.wait_frames(15);
    stalled.end();
    without_gaps(&rig.wait_end(), 10);
}

#[test]
fn an_unusable_model_is_one_error_and_crossfade_needs_none() {
    let _serial = init();
    let missing = Path::new("/no/such/model");
    let failing = MixRig::pair(&properties(missing, ""));
    assert!(failing.pipeline.set_state(gst::State::Playing).is_err());
    let errors = failing.errors();
    assert_eq!(errors.len(), 1, "{errors:?}");
    assert!(errors[0].contains("/no/such/model"), "{errors:?}");
    let plain = MixRig::pair(&properties(missing, "mode=crossfade mix=0.5"));
    plain.start();
    plain.push(0..3);
    assert_eq!(plain.finish().len(), 3);
}

#[test]
fn damaged_weights_are_one_error() {
    let _serial = init();
    let parent = tempfile::tempdir().unwrap();
    let folder = support::copied_folder(parent.path(), TINY);
    let weights = folder.join("transformer/diffusion_pytorch_model.safetensors");
    let data = std::fs::read(&weights).unwrap();
    std::fs::write(&weights, &data[..data.len() / 2]).unwrap();
    let rig = MixRig::pair(&properties(&folder, "mix=0.5"));
    rig.start();
    rig.push(0..30);
    assert!(rig.outcome().is_err());
    rig.pipeline.set_state(gst::State::Null).unwrap();
    let errors = rig.errors_of(&rig.mixer);
    assert_eq!(errors.len(), 1, "{errors:?}");
    assert!(errors[0].contains("safetensors"), "{errors:?}");
}

#[test]
fn cycles_leave_nothing_behind() {
    nothing_left_behind("cycles_leave_nothing_behind", cycle);
}

fn cycle() {
    let _serial = init();
    let model = model(TINY);
    for round in 0..24 {
        let mode = ["interpolate", "bridge", "crossfade"][round % 3];
        let mut rig = rig(&model, &format!("mode={mode} mix=0.5"));
        rig.start();
        rig.push(0..9);
        if round % 4 == 0 {
            rig.add(&rgb(SIZE, RATE));
            rig.remove(2);
        }
        if round % 5 == 0 {
            rig.finish();
        }
        drop(rig);
    }
}

// SPDX-License-Identifier: MPL-2.0
//! `ditmixer` as a compositor: which stream is shown when, alignment, caps, pads, flushing, transitions.
//!
//! In `mode=crossfade`, which needs no model; what all modes have in common is tested here.

#[path = "support/mixer.rs"]
mod mixer;
mod support;

use gst::prelude::*;
use gst_controller::prelude::*;
use mixer::{ANY, MixRig, Output, RATE, SIZE, STEP, a, b, on_time, picture, rgb};
use support::checks::kept_inspection;
use support::init;

const PLAIN: &str = "mode=crossfade";

/// Two streams of `frames` frames through a mixer with these properties.
fn mixed(properties: &str, frames: u64) -> Vec<Output> {
    let rig = MixRig::pair(&format!("{PLAIN} {properties}"));
    rig.start();
    rig.push(0..frames);
    rig.finish()
}

#[test]
fn both_ends_are_exactly_the_streams() {
    let _serial = init();
    let ends = [("mix=0", a as fn(u64) -> Vec<u8>), ("mix=1", b)];
    for (properties, stream) in ends {
        let outputs = mixed(properties, 10);
        assert_eq!(outputs.len(), 10);
        on_time(&outputs, RATE);
        for (index, output) in outputs.iter().enumerate() {
            assert_eq!(output.data, stream(index as u64), "{properties} frame {index}");
        }
    }
    let between = mixed("mix=0.5", 3);
    let (one, other) = (a(2), b(2));
    for ((mixed, one), other) in between[2].data.iter().zip(&one).zip(&other) {
        let half = (f64::from(*one) + f64::from(*other)) / 2.0;
        assert!((f64::from(*mixed) - half).abs() <= 1.0);
    }
}

#[test]
fn a_scaled_end_is_what_the_converter_makes_of_it() {
    let _serial = init();
    let caps = rgb((50, 40), RATE);
    let rig = MixRig::new(PLAIN, &[&caps], "video/x-raw,format=I420,width=64,height=32");
    rig.inputs[0].pad().set_property_from_str("sizing-policy", "stretch");
    rig.start();
    rig.inputs[0].push_frames(0..2, RATE, |frame| picture(9, frame, (50, 40)));
    let outputs = rig.finish();

    let input = gst_video::VideoInfo::from_caps(&caps.parse::<gst::Caps>().unwrap()).unwrap();
    let output = rig.caps();
    let mut config = gst_video::VideoConverterConfig::new();
    config.set_resampler_method(gst_video::VideoResamplerMethod::Linear);
    let converter = gst_video::VideoConverter::new(&input, &output, Some(config)).unwrap();
    let source = gst::Buffer::from_slice(picture(9, 1, (50, 40)));
    let source = gst_video::VideoFrame::from_buffer_readable(source, &input).unwrap();
    let target = gst::Buffer::with_size(output.size()).unwrap();
    let mut target = gst_video::VideoFrame::from_buffer_writable(target, &output).unwrap();
    converter.frame(&source, &mut target);
    let expected = target.into_buffer().map_readable().unwrap().to_vec();
    assert_eq!(outputs[1].data, expected);
}

#[test]
fn timestamps_are_exact_at_broadcast_rates() {
    let _serial = init();
    for rate in [(24000, 1001), (25, 1), (30000, 1001), (60000, 1001)] {
        let caps = rgb(SIZE, rate);
        let rig = MixRig::new(&format!("{PLAIN} mix=0.3"), &[&caps, &caps], ANY);
        rig.start();
        rig.inputs[0].push_frames(0..50, rate, a);
        rig.inputs[1].push_frames(0..50, rate, b);
        let outputs = rig.finish();
        assert_eq!(outputs.len(), 50, "{rate:?}");
        on_time(&outputs, rate);
    }
}

#[test]
fn the_faster_and_larger_input_sets_the_output_and_the_slower_is_repeated() {
    let _serial = init();
    let (fast, slow) = (rgb((64, 32), (30, 1)), rgb((32, 48), (10, 1)));
    let rig = MixRig::new(&format!("{PLAIN} mix=1"), &[&fast, &slow], ANY);
    rig.start();
    rig.inputs[0].push_frames(0..30, (30, 1), a);
    rig.inputs[1].push_frames(0..10, (10, 1), |frame| picture(200, frame, (32, 48)));
    let outputs = rig.finish();
    let caps = rig.caps();
    assert_eq!((caps.width(), caps.height(), caps.fps()), (64, 48, gst::Fraction::new(30, 1)));
    assert_eq!(outputs.len(), 30);
    on_time(&outputs, (30, 1));
    for (index, pair) in outputs.windows(2).enumerate() {
        assert_eq!(pair[0].data == pair[1].data, (index + 1) % 3 != 0, "frame {index}");
    }
}

#[test]
fn odd_sizes_and_other_shapes_are_put_in_whole() {
    let _serial = init();
    let wide = "video/x-raw,format=GRAY8,width=33,height=17,framerate=25/1,pixel-aspect-ratio=2/1";
    let rig = MixRig::new(PLAIN, &[wide], "video/x-raw,format=RGB,width=66,height=66");
    rig.start();
    rig.inputs[0].push_frames(0..1, RATE, |_| vec![255; 36 * 17]);
    let output = &rig.finish()[0].data;
    let stride = 200;
    // 66 x 17 square pixels in the middle of 66 x 66.
    for row in 0..66 {
        let expected = if (25..41).contains(&row) { 255 } else { 0 };
        if !(24..42).contains(&row) || (25..41).contains(&row) {
            assert_eq!(output[row * stride + 99], expected, "row {row}");
        }
    }
}

#[test]
fn a_lone_stream_passes_and_one_that_begins_late_waits_its_turn() {
    let _serial = init();
    let caps = rgb(SIZE, RATE);
    let rig = MixRig::new(&format!("{PLAIN} mix=1"), &[&caps], ANY);
    rig.start();
    rig.inputs[0].push_frames(0..5, RATE, a);
    assert!(rig.finish().iter().enumerate().all(|(index, it)| it.data == a(index as u64)));

    let rig = MixRig::pair(&format!("{PLAIN} mix=1"));
    rig.start();
    rig.inputs[0].push_frames(0..10, RATE, a);
    rig.inputs[1].push_frames(4..10, RATE, b);
    for (index, output) in rig.finish().iter().enumerate() {
        let expected = if index < 4 { a(index as u64) } else { b(index as u64) };
        assert_eq!(output.data, expected, "frame {index}");
    }
}

#[test]
fn a_stream_that_ends_early_is_held_or_replaced() {
    let _serial = init();
    for policy in ["hold", "fall-back"] {
        let rig = MixRig::pair(&format!("{PLAIN} on-missing={policy}"));
        rig.start();
        rig.inputs[0].push_frames(0..4, RATE, a);
        rig.inputs[1].push_frames(0..9, RATE, b);
        let outputs = rig.finish();
        assert_eq!(outputs.len(), 9);
        for (index, output) in outputs.iter().enumerate() {
            let index = index as u64;
            let expected = match policy {
                _ if index < 4 => a(index),
                "hold" => a(3),
                _ => b(index),
            };
            assert_eq!(output.data, expected, "{policy} frame {index}");
        }
    }
}

#[test]
fn a_gap_is_held_or_bridged_by_the_other_stream() {
    let _serial = init();
    for policy in ["hold", "fall-back"] {
        let rig = MixRig::pair(&format!("{PLAIN} on-missing={policy}"));
        rig.start();
        rig.inputs[0].push_frames(0..3, RATE, a);
        let gap = gst::event::Gap::builder(gst::ClockTime::from_nseconds(3 * STEP))
            .duration(gst::ClockTime::from_nseconds(2 * STEP))
            .build();
        // Through the source's own queue, so that it keeps its place.
        assert!(rig.inputs[0].0.send_event(gap));
        rig.inputs[0].push_frames(5..8, RATE, a);
        rig.inputs[1].push_frames(0..8, RATE, b);
        let outputs = rig.finish();
        assert_eq!(outputs.len(), 8);
        for (index, output) in outputs.iter().enumerate() {
            let index = index as u64;
            let expected = match (3..5).contains(&index) {
                false => a(index),
                true if policy == "hold" => a(2),
                true => b(index),
            };
            assert_eq!(output.data, expected, "{policy} frame {index}");
        }
    }
}

#[test]
fn new_caps_on_one_pad_are_followed() {
    let _serial = init();
    let rig = MixRig::pair(&format!("{PLAIN} mix=0.5"));
    rig.start();
    rig.inputs[0].push_frames(0..10, RATE, a);
    rig.inputs[1].push_frames(0..5, RATE, b);
    rig.inputs[1].caps(&rgb((128, 64), RATE));
    rig.inputs[1].push_frames(5..10, RATE, |frame| picture(200, frame, (128, 64)));
    let outputs = rig.finish();
    assert_eq!(outputs.len(), 10);
    on_time(&outputs, RATE);
    let sizes: Vec<usize> = outputs.iter().map(|output| output.data.len()).collect();
    assert_eq!(sizes, [vec![64 * 32 * 3; 5], vec![128 * 64 * 3; 5]].concat());
}

#[test]
fn pads_come_and_go_while_playing() {
    let _serial = init();
    let caps = rgb(SIZE, RATE);
    let mut rig = MixRig::new(&format!("{PLAIN} mix=1"), &[&caps], ANY);
    rig.start();
    rig.inputs[0].push_frames(0..5, RATE, a);
    rig.wait_frames(4);
    rig.add(&caps);
    rig.inputs[1].push_frames(0..10, RATE, b);
    rig.inputs[0].push_frames(5..10, RATE, a);
    rig.wait_frames(5);
    rig.remove(0);
    let outputs = rig.finish();
    on_time(&outputs, RATE);
    assert!(outputs.len() >= 9, "{}", outputs.len());
    assert_eq!(outputs[0].data, a(0));
    assert_eq!(outputs.last().unwrap().data, b(9));
    assert_eq!(rig.mixer.num_sink_pads(), 1);
}

#[test]
fn more_than_two_streams_lie_at_equal_distances() {
    let _serial = init();
    let caps = rgb(SIZE, RATE);
    let stream = |kind: u8| move |frame| picture(kind, frame, SIZE);
    for (mix, kind) in [(0.0, 10), (0.5, 100), (1.0, 200)] {
        let rig = MixRig::new(&format!("{PLAIN} mix={mix}"), &[&caps, &caps, &caps], ANY);
        // The order is that of zorder, not that of the names.
        rig.inputs[0].pad().set_property("zorder", 8u32);
        rig.inputs[1].pad().set_property("zorder", 9u32);
        rig.inputs[2].pad().set_property("zorder", 7u32);
        rig.start();
        for (input, kind) in rig.inputs.iter().zip([100, 200, 10]) {
            input.push_frames(0..3, RATE, stream(kind));
        }
        assert_eq!(rig.finish()[2].data, picture(kind, 2, SIZE), "mix={mix}");
    }
}

#[test]
fn children_are_the_pads_with_their_properties() {
    let _serial = init();
    let rig = MixRig::new(PLAIN, &[&rgb(SIZE, RATE), &rgb(SIZE, RATE)], ANY);
    let proxy = rig.mixer.dynamic_cast_ref::<gst::ChildProxy>().unwrap();
    assert_eq!(proxy.children_count(), 2);
    proxy.set_child_property("sink_1::prompt", "a blue star");
    proxy.set_child_property("sink_1::weight", 2.5f64);
    let pad = proxy.child_by_name("sink_1").unwrap();
    assert_eq!(pad.property::<String>("prompt"), "a blue star");
    assert_eq!(pad.property::<f64>("weight"), 2.5);
    assert_eq!(proxy.child_by_index(1).unwrap(), pad);
    assert!(proxy.child_by_name("sink_9").is_none() && proxy.child_by_index(2).is_none());
}

#[test]
fn a_controller_sweeps_the_mix_in_stream_time() {
    let _serial = init();
    let rig = MixRig::pair(PLAIN);
    let source = gst_controller::InterpolationControlSource::new();
    source.set_mode(gst_controller::InterpolationMode::Linear);
    let step = |frames: u64| gst::ClockTime::from_nseconds(frames * STEP);
    source.set(step(2), 0.0);
    source.set(step(6), 1.0);
    let binding = gst_controller::DirectControlBinding::new(&rig.mixer, "mix", &source);
    rig.mixer.add_control_binding(&binding).unwrap();
    rig.start();
    rig.inputs[0].push_frames(0..10, RATE, |_| vec![0; SIZE.0 * SIZE.1 * 3]);
    rig.inputs[1].push_frames(0..10, RATE, |_| vec![200; SIZE.0 * SIZE.1 * 3]);
    let levels: Vec<u8> = rig.finish().iter().map(|output| output.data[0]).collect();
    assert_eq!(levels, [0, 0, 0, 50, 100, 150, 200, 200, 200, 200]);
}

#[test]
fn a_transition_is_announced_and_ends_exactly() {
    let _serial = init();
    let properties = format!("{PLAIN} transition-easing=linear transition-at={}", 3 * STEP);
    let rig = MixRig::pair(&properties);
    rig.mixer.set_property("transition-duration", 4 * STEP);
    rig.start();
    rig.push(0..12);
    for (index, output) in rig.finish().iter().enumerate() {
        let frame = index as u64;
        match frame {
            0..=3 => assert_eq!(output.data, a(frame), "frame {frame}"),
            4..=6 => assert!(output.data != a(frame) && output.data != b(frame), "frame {frame}"),
            _ => assert_eq!(output.data, b(frame), "frame {frame}"),
        }
    }
    let time = |name: &str| {
        let found = rig.structures(name);
        assert_eq!(found.len(), 1, "{name}");
        assert_eq!(found[0].get::<String>("to").unwrap(), "sink_1");
        found[0].get::<gst::ClockTime>("running-time").unwrap().nseconds()
    };
    assert_eq!((time("dit-transition-start"), time("dit-transition-end")), (3 * STEP, 7 * STEP));
    assert_eq!(rig.mixer.property::<f64>("mix"), 1.0);
}

#[test]
fn the_transition_signal_goes_there_and_back() {
    let _serial = init();
    let caps = rgb(SIZE, RATE);
    let rig = MixRig::new(PLAIN, &[&caps], ANY);
    assert!(!rig.mixer.emit_by_name::<bool>("transition", &[&0u64]));
    let rig = MixRig::pair(PLAIN);
    rig.start();
    rig.push(0..3);
    rig.wait_frames(2);
    assert!(rig.mixer.emit_by_name::<bool>("transition", &[&(2 * STEP)]));
    assert!(!rig.mixer.emit_by_name::<bool>("transition", &[&(2 * STEP)]));
    rig.push(3..10);
    rig.wait_frames(7);
    assert_eq!(rig.structures("dit-transition-end").len(), 1);
    assert!(rig.mixer.emit_by_name::<bool>("transition", &[&(2 * STEP)]));
    rig.push(10..20);
    let outputs = rig.finish();
    assert_eq!(outputs[9].data, b(9));
    assert_eq!(outputs[19].data, a(19));
    assert_eq!(rig.structures("dit-transition-end").len(), 2);
    assert_eq!(rig.mixer.property::<f64>("mix"), 0.0);
}

#[test]
fn a_seek_starts_the_output_anew() {
    let _serial = init();
    let rig = MixRig::pair(&format!("{PLAIN} mix=1"));
    rig.start();
    rig.push(0..5);
    rig.wait_frames(4);
    let to = gst::ClockTime::from_nseconds(2 * STEP);
    rig.pipeline.seek_simple(gst::SeekFlags::FLUSH | gst::SeekFlags::ACCURATE, to).unwrap();
    rig.take();
    rig.push(2..7);
    let outputs = rig.finish();
    assert_eq!(outputs.len(), 5);
    for (output, frame) in outputs.iter().zip(2..) {
        assert_eq!((output.pts, &output.data), (frame * STEP, &b(frame)));
    }
}

#[test]
fn unusual_streams_end_in_one_error_or_none() {
    let _serial = init();
    let caps = rgb(SIZE, RATE);
    // No frames at all, from both and from one.
    let rig = MixRig::pair(PLAIN);
    rig.start();
    assert!(rig.finish().is_empty());
    // A buffer shorter than its caps.
    let rig = MixRig::new(PLAIN, &[&caps], ANY);
    rig.start();
    assert_eq!(rig.inputs[0].push(0, STEP, vec![1; 100]), gst::FlowReturn::Ok);
    assert_eq!(rig.finish().len(), 1);
}

#[test]
fn high_dynamic_range_is_refused_with_a_way_out() {
    let _serial = init();
    let hdr =
        "video/x-raw,format=P010_10LE,width=64,height=32,framerate=25/1,colorimetry=bt2100-pq";
    let rig = MixRig::new(PLAIN, &[&rgb(SIZE, RATE), hdr], ANY);
    rig.start();
    rig.inputs[0].push_frames(0..3, RATE, a);
    let _ = rig.inputs[1].push(0, STEP, vec![0; 64 * 32 * 3]);
    rig.inputs.iter().for_each(mixer::Input::end);
    assert!(rig.outcome().is_err());
    let errors = rig.errors_of(&rig.mixer);
    assert_eq!(errors.len(), 1, "{errors:?}");
    assert!(errors[0].contains("dynamic range"), "{errors:?}");
}

#[test]
fn states_cycle() {
    let _serial = init();
    let rig = MixRig::pair(&format!("{PLAIN} mix=0.5"));
    for round in 0..20 {
        rig.start();
        rig.push(0..3);
        if round % 2 == 0 {
            rig.wait_frames(2);
        }
        rig.pipeline.set_state(gst::State::Null).unwrap();
        let bus = rig.pipeline.bus().unwrap();
        bus.set_flushing(true);
        bus.set_flushing(false);
        rig.take();
    }
}

#[test]
fn the_kept_inspection_is_up_to_date() {
    let _serial = init();
    kept_inspection("ditmixer");
}

// SPDX-License-Identifier: MPL-2.0
//! `ditfilter` in live pipelines: the latency that it reports, keeping up, giving up and taking back.

#[path = "support/filter.rs"]
mod filter;
mod support;

use filter::{Rig, model};
use gst::prelude::*;
use gst_base::prelude::BaseSinkExt;
use support::init;

/// Far too many for any machine to keep up, with pictures as large as those of `live` and guidance: at 64x32 a fast one makes
/// a thousand steps in a third of a second.
const HOPELESS: u32 = 1000;

fn live(model: &std::path::Path, properties: &str, rate: u32) -> Rig {
    Rig::launch(&format!(
        "videotestsrc is-live=true pattern=ball ! video/x-raw,width=384,height=192,framerate={rate}/1 \
         ! ditfilter name=filter model-path={} device=cpu threads=1 still-threshold=0 guidance-scale=3 {properties} \
         ! fakesink name=sink sync=true",
        model.display()
    ))
}

/// Waits until so many buffers have come out since.
fn wait_buffers(rig: &Rig, count: usize) {
    let target = rig.buffers().len() + count;
    let (sender, arrived) = std::sync::mpsc::channel();
    let sink = rig.pipeline.by_name("sink").unwrap().static_pad("sink").unwrap();
    let probe = sink.add_probe(gst::PadProbeType::BUFFER, move |_, _| {
        let _ = sender.send(());
        gst::PadProbeReturn::Ok
    });
    while rig.buffers().len() < target {
        arrived.recv_timeout(std::time::Duration::from_secs(120)).unwrap();
    }
    sink.remove_probe(probe.unwrap());
}

/// Whether no frame is missing, doubled or out of order.
fn assert_gapless(rig: &Rig, rate: u64) {
    let times: Vec<u64> = rig.buffers().iter().map(|it| it.pts().unwrap().nseconds()).collect();
    let frame = 1_000_000_000 / rate;
    for pair in times.windows(2) {
        assert!(pair[1].abs_diff(pair[0] + frame) <= 1, "{pair:?}");
    }
}

#[test]
fn a_pipeline_has_the_latency_of_chunk_and_work() {
    let _serial = init();
    let parent = tempfile::tempdir().unwrap();
    let model = model(parent.path(), 1);
    let rig = live(&model, "chunk-frames=4 late-policy=wait", 10);
    rig.start();
    wait_buffers(&rig, 3);
    let mut query = gst::query::Latency::new();
    assert!(rig.filter.query(&mut query));
    let (is_live, least, most) = query.result();
    // Three frames to wait for and four to work, at 100 ms; videotestsrc adds one frame.
    let own = least - gst::ClockTime::from_mseconds(100);
    assert!(is_live && own == gst::ClockTime::from_mseconds(700), "{least}");
    assert!(most.is_none_or(|most| most >= least));
    assert_eq!(rig.pipeline.latency(), None, "the application has set none");
    // Three chunks denoised together: eleven frames to wait for, four to work.
    let rig = live(&model, "chunk-frames=4 stream-batch=3 late-policy=wait", 10);
    rig.start();
    wait_buffers(&rig, 3);
    let mut query = gst::query::Latency::new();
    assert!(rig.filter.query(&mut query));
    assert_eq!(query.result().1, gst::ClockTime::from_mseconds(100 + 1500));
}

#[test]
fn a_hopeless_stream_gives_up_in_order_and_comes_back() {
    let _serial = init();
    let parent = tempfile::tempdir().unwrap();
    let model = model(parent.path(), HOPELESS);
    let rig = live(&model, "chunk-frames=4 strength=1 latency-budget=200000000", 10);
    rig.start();
    // Pictures pass while the model loads and when the first job is not there in time; nothing stalls.
    rig.wait_action("pass-through");
    wait_buffers(&rig, 20);
    assert!(rig.stat("passed") > 10);
    let late = rig.pipeline.current_running_time().unwrap();
    let last = rig.buffers().last().unwrap().pts().unwrap();
    // Bounded: 3 frames and the budget, whatever the model does; and a busy machine.
    assert!(late.saturating_sub(last) < gst::ClockTime::from_mseconds(2000), "{late} {last}");
    rig.wait_message(|message| message.type_() == gst::MessageType::Qos);
    // What was asked for becomes possible.
    rig.filter.set_property("steps", 1u32);
    rig.filter.set_property("latency-budget", 3_000_000_000u64);
    rig.wait_action("none");
    assert!(rig.stat("restyled") > 0);
    assert_gapless(&rig, 10);
}

#[test]
fn late_pictures_pass_or_wait_as_asked() {
    let _serial = init();
    let parent = tempfile::tempdir().unwrap();
    let model = model(parent.path(), HOPELESS);
    let rig = live(&model, "chunk-frames=4 late-policy=passthrough latency-budget=100000000", 20);
    rig.start();
    rig.wait_loaded();
    wait_buffers(&rig, 20);
    assert_eq!(rig.stat("repeated"), 0);
    assert!(rig.stat("passed") >= 15, "{:?}", rig.stat("passed"));
    assert_gapless(&rig, 20);
}

#[test]
fn a_late_chunk_shows_the_last_picture_again() {
    let _serial = init();
    let parent = tempfile::tempdir().unwrap();
    let model = model(parent.path(), 1);
    let rig = live(&model, "chunk-frames=4 late-policy=repeat latency-budget=1000000000", 10);
    rig.start();
    rig.wait_loaded();
    // From here on the model works on one chunk for ever.
    let restyled = |rig: &Rig| rig.stat("restyled") > 0;
    while !restyled(&rig) {
        wait_buffers(&rig, 1);
    }
    rig.filter.set_property("steps", HOPELESS);
    rig.filter.set_property("strength", 1.0f64);
    let told = rig.wait_action("repeat-frame");
    assert!(told.get::<u64>("repeated").unwrap() >= 1);
    // It is not repeated for ever: for the length of a chunk, four frames, once for the chunk that was in the making when the
    // steps changed, if that came late as well, and once for the endless one.
    rig.wait_action("pass-through");
    assert!((1..=8).contains(&rig.stat("repeated")), "{}", rig.stat("repeated"));
    assert_gapless(&rig, 10);
}

#[test]
fn sound_and_pictures_stay_together() {
    let _serial = init();
    let parent = tempfile::tempdir().unwrap();
    let model = model(parent.path(), 1);
    let rig = Rig::launch(&format!(
        "videotestsrc is-live=true pattern=ball ! video/x-raw,width=64,height=32,framerate=10/1 \
         ! ditfilter name=filter model-path={} device=cpu threads=1 chunk-frames=4 late-policy=wait \
         ! fakesink name=sink sync=true \
         audiotestsrc is-live=true samplesperbuffer=4410 ! audio/x-raw,rate=44100 \
         ! fakesink name=sound sync=true",
        model.display()
    ));
    rig.start();
    wait_buffers(&rig, 10);
    // Both sinks delay their streams by the latency of the whole pipeline, and times are not touched.
    let latency = |name: &str| {
        let sink = rig.pipeline.by_name(name).unwrap();
        sink.dynamic_cast::<gst_base::BaseSink>().unwrap().latency()
    };
    assert_eq!(latency("sink"), latency("sound"));
    assert!(latency("sink") >= gst::ClockTime::from_mseconds(700));
    assert_gapless(&rig, 10);
}

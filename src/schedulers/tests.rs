// SPDX-License-Identifier: MPL-2.0
//! What parity fixtures cannot show: refused settings, duplicate timesteps, and the limits at the last step.

use serde_json::{Value, json};

use super::*;

fn config(class_name: &str, settings: Value) -> Result<SchedulerConfig> {
    SchedulerConfig::from_json(Path::new("scheduler_config.json"), class_name, settings)
}

/// The published settings with `changes` on top.
fn unipc(changes: Value) -> Result<SchedulerConfig> {
    let mut settings = json!({
        "prediction_type": "flow_prediction", "use_flow_sigmas": true, "flow_shift": 3.0,
        "disable_corrector": [], "solver_p": null, "use_karras_sigmas": false,
    });
    for (key, value) in changes.as_object().unwrap() {
        settings[key] = value.clone();
    }
    config("UniPCMultistepScheduler", settings)
}

fn euler(settings: Value) -> Result<SchedulerConfig> {
    config("FlowMatchEulerDiscreteScheduler", settings)
}

/// A stochastic solver of diffusers' `DPMSolverMultistepScheduler`, with `changes` on top.
fn dpmsolver(changes: Value) -> Result<SchedulerConfig> {
    let mut settings = json!({
        "prediction_type": "sample", "use_flow_sigmas": true, "flow_shift": 4.0,
        "algorithm_type": "sde-dpmsolver++",
    });
    for (key, value) in changes.as_object().unwrap() {
        settings[key] = value.clone();
    }
    config("DPMSolverMultistepScheduler", settings)
}

/// For solvers that ask for no noise.
fn none(_: u32) -> Tensor {
    unreachable!("noise was asked for")
}

/// Runs a whole walk on constants, with a velocity that points from the clean value 2 to the current sample.
fn walk(schedule: &Schedule) -> Vec<f64> {
    let mut sample = Tensor::from_slice(&[1.0f32, -0.5]);
    let mut solver = schedule.start(0);
    let mut values = Vec::new();
    for index in 0..schedule.len() {
        let flow_pred = (&sample - 2.0) / f64::from(schedule.sigma(index));
        sample = solver.step(&flow_pred, &sample, &none);
        values.push(sample.double_value(&[1]));
    }
    values
}

#[test]
fn a_model_of_the_sample_walks_as_one_of_the_flow() {
    let schedule = |kind: &str| {
        unipc(json!({"prediction_type": kind})).unwrap().set_timesteps(5, None).unwrap()
    };
    let (by_flow, by_sample) = (schedule("flow_prediction"), schedule("sample"));
    let walk = |schedule: &Schedule, is_flow: bool| {
        let mut sample = Tensor::from_slice(&[1.0f32, -0.5]);
        let mut solver = schedule.start(0);
        for index in 0..schedule.len() {
            let clean = sample.tanh();
            let flow = (&sample - &clean) / f64::from(schedule.sigma(index));
            sample = solver.step(if is_flow { &flow } else { &clean }, &sample, &none);
        }
        sample
    };
    let difference = (walk(&by_flow, true) - walk(&by_sample, false)).abs().max();
    assert!(difference.double_value(&[]) < 1e-6);
}

#[test]
fn unsupported_settings_are_refused_by_name() {
    let cases = [
        (unipc(json!({"prediction_type": "epsilon"})), "prediction_type"),
        (unipc(json!({"use_flow_sigmas": false})), "use_flow_sigmas"),
        (unipc(json!({"predict_x0": false})), "predict_x0"),
        (unipc(json!({"use_karras_sigmas": true})), "use_karras_sigmas"),
        (unipc(json!({"use_exponential_sigmas": true})), "use_exponential_sigmas"),
        (unipc(json!({"use_beta_sigmas": true})), "use_beta_sigmas"),
        (unipc(json!({"thresholding": true})), "thresholding"),
        (unipc(json!({"solver_p": {"_class_name": "DDIMScheduler"}})), "solver_p"),
        (unipc(json!({"solver_order": 0})), "solver_order"),
        (unipc(json!({"flow_shift": 0.0})), "flow_shift"),
        (unipc(json!({"num_train_timesteps": 0})), "num_train_timesteps"),
        (unipc(json!({"shift_terminal": 1.0})), "shift_terminal"),
        (euler(json!({"shift": -1.0})), "shift"),
        (euler(json!({"invert_sigmas": true})), "invert_sigmas"),
        (euler(json!({"stochastic_sampling": true})), "stochastic_sampling"),
        (euler(json!({"use_karras_sigmas": true})), "use_karras_sigmas"),
        (dpmsolver(json!({"prediction_type": "epsilon"})), "prediction_type"),
        (dpmsolver(json!({"use_flow_sigmas": false})), "use_flow_sigmas"),
        (dpmsolver(json!({"solver_order": 3})), "solver_order"),
        (dpmsolver(json!({"final_sigmas_type": "sigma_min"})), "final_sigmas_type"),
        (dpmsolver(json!({"use_dynamic_shifting": true})), "use_dynamic_shifting"),
        (dpmsolver(json!({"use_lu_lambdas": true})), "use_lu_lambdas"),
        (dpmsolver(json!({"flow_shift": -1.0})), "flow_shift"),
        (config("DDIMScheduler", json!({})), "_class_name"),
    ];
    for (result, name) in cases {
        let error = result.expect_err(name);
        assert!(matches!(&error, Error::Setting { .. }), "{name}: {error:?}");
        assert!(
            error.to_string().starts_with(&format!("scheduler_config.json: {name}: found ")),
            "{error}"
        );
    }
}

#[test]
fn values_of_the_wrong_type_are_refused() {
    for changes in
        [json!({"flow_shift": "three"}), json!({"solver_type": "bh9"}), json!({"solver_order": -1})]
    {
        let error = unipc(changes.clone()).expect_err("must not parse");
        assert!(matches!(&error, Error::Checkpoint { .. }), "{changes}: {error:?}");
    }
}

#[test]
fn folders_without_a_usable_file_are_refused_by_path() {
    let folder = tempfile::tempdir().unwrap();
    let missing = SchedulerConfig::from_folder(folder.path()).unwrap_err();
    assert!(matches!(&missing, Error::Io { .. }), "{missing:?}");
    for text in ["not json", "[1, 2]", "{\"flow_shift\": 3.0}"] {
        std::fs::write(folder.path().join(CONFIG_FILE), text).unwrap();
        let error = SchedulerConfig::from_folder(folder.path()).unwrap_err();
        assert!(matches!(&error, Error::Checkpoint { .. }), "{text}: {error:?}");
        assert!(error.to_string().contains(CONFIG_FILE), "{error}");
    }
}

#[test]
fn nulls_and_unread_keys_are_accepted() {
    unipc(json!({"use_karras_sigmas": null, "beta_start": 0.1, "_diffusers_version": "0", "solver_type": "midpoint"}))
        .unwrap();
}

#[test]
fn impossible_step_counts_are_refused() {
    assert!(unipc(json!({})).unwrap().set_timesteps(0, None).is_err());
    assert!(euler(json!({"use_dynamic_shifting": true})).unwrap().set_timesteps(4, None).is_err());
    // One step cannot both start at 1 and end at the terminal level.
    assert!(unipc(json!({"shift_terminal": 0.1})).unwrap().set_timesteps(1, None).is_err());
}

#[test]
fn published_schedule_of_four_steps() {
    let schedule = unipc(json!({})).unwrap().set_timesteps(4, None).unwrap();
    assert_eq!(schedule.timesteps, [999.0, 900.0, 750.0, 500.0]);
    assert_eq!(schedule.sigmas, [0.999_999, 0.900_119_96, 0.750_374_8, 0.500_999, 0.0]);
}

#[test]
fn terminal_level_is_reached() {
    let schedule = unipc(json!({"shift_terminal": 0.1})).unwrap().set_timesteps(5, None).unwrap();
    assert!((schedule.sigmas[4] - 0.1).abs() < 1e-6, "{schedule:?}");
}

#[test]
fn few_steps_end_lower() {
    let schedule = |steps| dpmsolver(json!({})).unwrap().set_timesteps(steps, None).unwrap();
    let four = schedule(4).with_terminal_at_most(0.4);
    for (level, expected) in four.sigmas.iter().zip([0.9997, 0.8914, 0.7194, 0.4, 0.0]) {
        assert!((level - expected).abs() < 1e-3, "{four:?}");
    }
    for (timestep, level) in four.timesteps.iter().zip(&four.sigmas) {
        assert!((timestep - level * 1000.0).abs() < 1e-3, "{four:?}");
    }
    // One that ends lower already, and those with no level between, are as they were.
    assert_eq!(schedule(5).with_terminal_at_most(0.6), schedule(5));
    for steps in [1, 2] {
        assert_eq!(schedule(steps).with_terminal_at_most(0.4), schedule(steps));
    }
}

#[test]
fn other_levels_are_met_by_any_number_of_steps() {
    let levels = [1.0, 0.9, 0.7, 0.5, 0.2];
    let over = |steps| {
        let schedule = dpmsolver(json!({})).unwrap().set_timesteps(steps, None).unwrap();
        schedule.over_levels(&levels)
    };
    let assert_levels = |found: &Schedule, expected: &[f32]| {
        assert_eq!(found.sigmas.len(), expected.len(), "{found:?}");
        for (level, expected) in found.sigmas.iter().zip(expected) {
            assert!((level - expected).abs() < 1e-3, "{found:?}");
        }
        for (timestep, level) in found.timesteps.iter().zip(&found.sigmas) {
            assert!((timestep - level * 1000.0).abs() < 1e-3, "{found:?}");
        }
    };
    assert_levels(&over(5), &[0.9997, 0.9, 0.7, 0.5, 0.2, 0.0]);
    assert_levels(&over(2), &[0.9997, 0.6, 0.0]);
    assert_levels(&over(1), &[0.9997, 0.0]);
    let ten = [0.9997, 0.95, 0.9, 0.8, 0.7, 0.6, 0.5, 0.35, 0.2, 0.1, 0.0];
    assert_levels(&over(10), &ten);
    assert!(over(5).sigmas[0] < 1.0, "the solver knows no level of noise alone");
}

#[test]
fn a_repeated_timestep_is_found_at_its_second_place() {
    let schedule = unipc(json!({"flow_shift": 16.0})).unwrap().set_timesteps(100, None).unwrap();
    assert_eq!(schedule.timesteps[..2], [999.0, 999.0]);
    assert_eq!(schedule.index_for_timestep(999.0).unwrap(), 1);
    assert_eq!(schedule.index_for_timestep(schedule.timesteps[7]).unwrap(), 7);
    assert!(schedule.index_for_timestep(3.5).is_err());
}

#[test]
fn few_step_lists_are_checked() {
    let schedule = Schedule::from_sigmas(&[1.0, 0.9375, 0.5]).unwrap();
    assert_eq!(schedule.timesteps, [1000.0, 937.5, 500.0]);
    assert_eq!(schedule.sigmas, [1.0, 0.9375, 0.5, 0.0]);
    for bad in [&[][..], &[0.0], &[1.5], &[0.5, 0.5], &[0.5, 0.8], &[f64::NAN]] {
        assert!(Schedule::from_sigmas(bad).is_err(), "{bad:?}");
    }
}

#[test]
fn steps_where_the_reference_gives_nan_take_the_limit() {
    for changes in [json!({"solver_type": "bh1"}), json!({"lower_order_final": false})] {
        let schedule = unipc(changes.clone()).unwrap().set_timesteps(5, None).unwrap();
        let values = walk(&schedule);
        assert!((values[4] - 2.0).abs() < 1e-5, "{changes}: {values:?}");
    }
    let repeated =
        unipc(json!({"final_sigmas_type": "sigma_min"})).unwrap().set_timesteps(5, None).unwrap();
    assert_eq!(repeated.sigmas[4], repeated.sigmas[5]);
    let values = walk(&repeated);
    assert!(values.iter().all(|value| value.is_finite()), "{values:?}");
}

#[test]
fn constant_clean_prediction_is_reached_by_every_order() {
    for order in 1..=4 {
        let schedule =
            unipc(json!({"solver_order": order})).unwrap().set_timesteps(9, None).unwrap();
        let values = walk(&schedule);
        assert!((values[8] - 2.0).abs() < 1e-4, "order {order}: {values:?}");
    }
}

/// Whatever noise comes in on the way, the last step goes to the clean sample; each step asks for its own, but for the last.
#[test]
fn a_stochastic_walk_asks_for_the_noise_of_each_step() {
    let schedule = dpmsolver(json!({})).unwrap().set_timesteps(4, None).unwrap();
    let asked = std::cell::RefCell::new(Vec::new());
    let noise = |step: u32| {
        asked.borrow_mut().push(step);
        Tensor::from_slice(&[f64::from(step) as f32, 9.0])
    };
    let clean = Tensor::from_slice(&[2.0f32, -1.0]);
    let mut sample = Tensor::from_slice(&[1.0f32, -0.5]);
    let mut solver = schedule.start(1);
    while solver.timestep().is_some() {
        sample = solver.step(&clean, &sample, &noise);
    }
    assert_eq!(Vec::<f32>::try_from(&sample).unwrap(), [2.0, -1.0]);
    assert_eq!(*asked.borrow(), [1, 2]);
    let error = dpmsolver(json!({"algorithm_type": "sde-dpmsolver"})).unwrap_err();
    assert!(error.to_string().contains("sde-dpmsolver++"), "{error}");
}

#[test]
fn half_precision_predictions_keep_the_sample_in_float32() {
    let schedule = unipc(json!({})).unwrap().set_timesteps(3, None).unwrap();
    let mut solver = schedule.start(1);
    let sample = Tensor::zeros([1, 2, 3], (tch::Kind::Float, tch::Device::Cpu));
    let flow_pred = Tensor::ones([1, 2, 3], (tch::Kind::BFloat16, tch::Device::Cpu));
    let next = solver.step(&flow_pred, &sample, &none);
    assert_eq!((next.kind(), solver.index()), (tch::Kind::Float, 2));
}

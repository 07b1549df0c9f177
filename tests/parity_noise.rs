// SPDX-License-Identifier: MPL-2.0
//! Noise as torch draws it, against torch itself. By itself in this file, as torch has one generator for a whole process.

use gstdit::pipeline::torch_noise;
use tch::{Device, Kind, Tensor};

#[test]
fn torch_noise_equals_torch() {
    for shape in [&[3, 3][..], &[4, 16], &[1, 5, 7]] {
        tch::manual_seed(1234);
        let expected = Tensor::randn(shape, (Kind::Float, Device::Cpu));
        let worst = (torch_noise(1234, shape) - expected).abs().max().double_value(&[]);
        assert!(worst < 2e-6, "{shape:?}: {worst}");
    }
}

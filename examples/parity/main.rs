// SPDX-License-Identifier: MPL-2.0
//! Computes what a folder of goldens asks for and writes it under the same keys:
//!
//!     cargo run --release --example parity -- FOLDER candidate.safetensors [--case NAME]...
//!
//! Exit status: 0 all cases were run, 1 an error (named), 3 some cases are of a kind that is not known (listed).

mod cases;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use cases::Runner;

struct Arguments {
    folder: PathBuf,
    candidate: PathBuf,
    cases: Vec<String>,
}

fn arguments() -> Result<Arguments> {
    let usage = "usage: parity FOLDER candidate.safetensors [--case NAME]...";
    let (mut paths, mut cases) = (Vec::new(), Vec::new());
    let mut rest = std::env::args().skip(1);
    while let Some(argument) = rest.next() {
        if argument == "--case" {
            cases.push(rest.next().context(usage)?);
        } else if argument.starts_with("--") {
            bail!("unknown option {argument}; {usage}");
        } else {
            paths.push(PathBuf::from(argument));
        }
    }
    let [folder, candidate] = <[PathBuf; 2]>::try_from(paths).ok().context(usage)?;
    Ok(Arguments { folder, candidate, cases })
}

fn run() -> Result<ExitCode> {
    let arguments = arguments()?;
    gstdit::torch::init();
    let mut runner = Runner::open(&arguments.folder)?;
    for name in &arguments.cases {
        if !runner.cases().iter().any(|case| case.name == *name) {
            bail!("{}: no case {name}", arguments.folder.display());
        }
    }
    let mut unknown = Vec::new();
    for case in runner.cases().to_vec() {
        if !arguments.cases.is_empty() && !arguments.cases.contains(&case.name) {
            continue;
        }
        let known = runner.run(&case).with_context(|| format!("case {}", case.name))?;
        println!("{} ({}): {}", case.name, case.kind, if known { "done" } else { "unknown kind" });
        if !known {
            unknown.push(format!("{} ({})", case.name, case.kind));
        }
    }
    gstdit::weights::safetensors::write(
        &arguments.candidate,
        runner.results.iter().map(|(key, tensor)| (key.clone(), tensor)),
    )?;
    if unknown.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    println!("cases of unknown kinds: {}", unknown.join(", "));
    Ok(ExitCode::from(3))
}

fn main() -> ExitCode {
    run().unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::from(1)
    })
}

//! Copies the crate's source and puts stand-ins in place of what has to follow a schedule. Fails if one has lost its place.

use std::path::{Path, PathBuf};
use std::{env, fs};

/// Where the names come from, and where the stand-ins live.
const STAND_INS: [(&str, &str); 3] = [
    ("tokio::", "crate::stand_in::tokio::"),
    ("std::sync::", "crate::stand_in::standard::sync::"),
    ("std::hash::", "crate::stand_in::standard::hash::"),
];

/// Two shards instead of 16: keys meet in one more often, and schedules are shorter.
const SHARDS: (&str, &str) = ("const SHARDS: usize = 16;", "const SHARDS: usize = 2;");

fn main() {
    let root = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").unwrap());
    let source = env::var_os("SCHEDULES_SOURCE").map_or_else(|| root.join("../src"), PathBuf::from);
    let copy = PathBuf::from(env::var_os("OUT_DIR").unwrap()).join("gate");
    println!("cargo::rerun-if-env-changed=SCHEDULES_SOURCE");
    println!("cargo::rerun-if-changed={}", source.display());
    println!("cargo::rerun-if-changed=src/no_files.rs");
    println!("cargo::rerun-if-changed=build.rs");
    if copy.exists() {
        fs::remove_dir_all(&copy).unwrap();
    }
    copy_room(&source, &copy);
    // There are no files here.
    let files = copy.join("lock/file");
    fs::create_dir(&files).unwrap();
    fs::copy(root.join("src/no_files.rs"), files.join("mod.rs")).unwrap();
    // Nor threads of its own, which only the files need.
    edit(&copy.join("util/mod.rs"), |text| {
        let lines = text.lines().filter(|line| !line.contains("off_thread"));
        lines.collect::<Vec<_>>().join("\n")
    });
    // `src/lib.rs` includes the front page, which can then have no inner docs and attributes.
    edit(&copy.join("lib.rs"), |text| {
        let is_inner = |line: &&str| line.starts_with("//!") || line.starts_with("#![");
        let lines = text.lines().filter(|line| !is_inner(line));
        lines.collect::<Vec<_>>().join("\n")
    });
    for file in ["flight/registry.rs", "lock/memory.rs"] {
        edit(&copy.join(file), |text| {
            assert_eq!(text.matches(SHARDS.0).count(), 1, "{SHARDS:?} in {file}");
            text.replace(SHARDS.0, SHARDS.1)
        });
    }
}

fn copy_room(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let to = to.join(path.file_name().unwrap());
        if path.ends_with("lock/file") {
            continue;
        }
        if path.is_dir() {
            copy_room(&path, &to);
            continue;
        }
        let mut text = fs::read_to_string(&path).unwrap();
        for (name, stand_in) in STAND_INS {
            text = text.replace(name, stand_in);
        }
        fs::write(to, text).unwrap();
    }
}

fn edit(path: &Path, change: impl Fn(String) -> String) {
    let text = fs::read_to_string(path).unwrap();
    fs::write(path, change(text)).unwrap();
}

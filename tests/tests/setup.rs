//! What `scripts/setup` says on machines that lack something: each a folder of links for PATH that leaves some programs
//! out, or a broken one in their place. None has `apt-get` or `sudo`, so nothing is ever installed.

#![cfg(target_os = "linux")]
#![expect(
    clippy::unwrap_used,
    reason = "helpers outside of #[test] functions are tests too"
)]

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

/// A machine that has what this one has, but for what a test takes away.
struct Machine {
    folder: TempDir,
    environment: Vec<(String, String)>,
}

impl Machine {
    fn without(missing: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let programs = folder.path().join("bin");
        fs::create_dir(&programs).unwrap();
        let path = std::env::var_os("PATH").unwrap();
        for from in std::env::split_paths(&path).filter_map(|from| fs::read_dir(from).ok()) {
            for program in from.map(Result::unwrap) {
                let name = program.file_name().into_string().unwrap();
                let installs = ["apt-get", "sudo"].contains(&name.as_str());
                // What ccache stands for by its links (scripts/test puts them first in PATH) it would seek here,
                // and find only itself.
                let target = fs::canonicalize(program.path()).unwrap_or_default();
                let cached = target.ends_with("ccache") && name != "ccache";
                if !installs && !cached && !missing.contains(&name.as_str()) {
                    // The first in PATH stays.
                    let _ = symlink(program.path(), programs.join(name));
                }
            }
        }
        let machine = Self {
            folder,
            environment: Vec::new(),
        };
        // Not the compilers and the libclang of whoever runs this.
        let target = machine.path("target");
        machine
            .with("PATH", programs.to_str().unwrap())
            .with("CARGO_TARGET_DIR", &target)
    }

    fn with(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.into(), value.into()));
        self
    }

    fn path(&self, name: &str) -> String {
        self.folder.path().join(name).to_str().unwrap().into()
    }

    /// Puts a script in the place of a program.
    fn with_program(self, name: &str, script: &str) -> Self {
        let path = self.folder.path().join("bin").join(name);
        let _ = fs::remove_file(&path);
        fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        self
    }

    /// Lets LIBCLANG_PATH be a folder with one library of this name, made of this C.
    fn with_library(self, name: &str, source: &str) -> Self {
        let folder = self.folder.path().join("libclang");
        fs::create_dir(&folder).unwrap();
        let c = folder.join("libclang.c");
        fs::write(&c, source).unwrap();
        let made = Command::new("cc")
            .args(["-shared", "-fPIC", "-o"])
            .args([folder.join(name), c])
            .status();
        assert!(made.unwrap().success());
        let folder = folder.to_str().unwrap().to_owned();
        self.with("LIBCLANG_PATH", &folder)
    }

    /// Runs `scripts/setup`: its exit code, and all that it said.
    fn set_up(&self) -> (i32, String) {
        let mut command = Command::new(repository().join("scripts/setup"));
        for name in ["CC", "CXX", "LIBCLANG_PATH", "BINDGEN_EXTRA_CLANG_ARGS"] {
            command.env_remove(name);
        }
        let variables = self.environment.iter().map(|(name, value)| (name, value));
        let output = command.envs(variables).output().unwrap();
        let said = [output.stdout, output.stderr].concat();
        (
            output.status.code().unwrap(),
            String::from_utf8(said).unwrap(),
        )
    }

    /// Asserts that it ends with 2, before anything long, and names what is missing.
    #[track_caller]
    fn lacks(&self, words: &[&str]) {
        let (code, said) = self.set_up();
        assert_eq!(code, 2, "{said}");
        for word in words {
            assert!(said.contains(word), "no {word:?} in: {said}");
        }
    }
}

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .unwrap()
        .into()
}

/// A libclang of this version that finds no header.
fn headless(version: &str) -> String {
    format!(
        r#"typedef struct {{ const void *data; unsigned flags; }} String;
        void *clang_createIndex(int a, int b) {{ return ""; }}
        String clang_getClangVersion(void) {{ String s = {{"Debian clang version {version}", 0}}; return s; }}
        const char *clang_getCString(String s) {{ return s.data; }}
        void *clang_parseTranslationUnit() {{ return ""; }}
        unsigned clang_getNumDiagnostics(void *unit) {{ return 1; }}
        void *clang_getDiagnostic(void *unit, unsigned index) {{ return ""; }}
        int clang_getDiagnosticSeverity(void *one) {{ return 4; }}
        String clang_getDiagnosticSpelling(void *one) {{ String s = {{"'stddef.h' file not found", 0}}; return s; }}"#
    )
}

#[test]
fn a_machine_that_has_everything_is_good() {
    let (code, said) = Machine::without(&[]).set_up();
    assert_eq!(code, 0, "{said}");
    assert!(said.contains("everything is there"), "{said}");
}

#[test]
fn a_compiler_for_c_does_not_do_for_cxx() {
    Machine::without(&["c++", "g++"]).lacks(&["there is no C++ compiler", "gcc-c++"]);
}

#[test]
fn no_make_is_found_out() {
    Machine::without(&["make"]).lacks(&["there is no make"]);
}

#[test]
fn a_compiler_without_a_linker_is_found_out() {
    Machine::without(&["ld", "x86_64-linux-gnu-ld"]).lacks(&["cannot compile and link", "ld"]);
}

#[test]
fn a_compiler_that_is_too_old_for_rocksdb_is_found_out() {
    let path = std::env::var("PATH").unwrap();
    let script = format!("PATH='{path}' exec c++ -U__GNUC__ -D__GNUC__=10 \"$@\"");
    Machine::without(&[])
        .with_program("c++", &script)
        .lacks(&["too old", "GCC 11"]);
}

#[test]
fn libclang_cpp_does_not_do_for_libclang() {
    Machine::without(&[])
        .with_library("libclang-cpp.so.14", &headless("14.0.6"))
        .lacks(&["there is no libclang", "libclang-cpp is another library"]);
}

#[test]
fn a_library_that_only_has_the_name_is_no_libclang() {
    Machine::without(&[])
        .with_library("libclang.so.1", "int nothing;")
        .lacks(&["libclang.so.1 is no libclang", "clang_createIndex"]);
}

#[test]
fn a_libclang_that_is_too_old_for_bindgen_is_found_out() {
    Machine::without(&[])
        .with_library("libclang-8.so.1", &headless("8.0.1"))
        .lacks(&["too old", "8.0.1", "9 or newer"]);
}

#[test]
fn a_libclang_without_the_headers_of_its_compiler_is_found_out() {
    Machine::without(&[])
        .with_library("libclang.so", &headless("14.0.6"))
        .lacks(&["14.0.6", "'stddef.h' file not found"]);
}

#[test]
fn the_libclang_with_the_highest_version_is_the_one_that_is_tried() {
    // As bindgen does, which fails by it although the other would do.
    let machine = Machine::without(&[]).with_library("libclang-99.so", "int nothing;");
    fs::copy(
        machine.path("libclang/libclang-99.so"),
        machine.path("libclang/libclang-9.so.1"),
    )
    .unwrap();
    machine.lacks(&["libclang-99.so is no libclang"]);
}

#[test]
fn no_network_for_the_crates_is_said_before_anything_is_compiled() {
    let machine = Machine::without(&[]);
    let home = machine.path("cargo");
    machine
        .with("CARGO_HOME", &home)
        .with("CARGO_NET_OFFLINE", "true")
        .lacks(&["cannot download the crates", "network"]);
}

#[test]
fn a_home_that_cannot_be_written_is_named() {
    Machine::without(&[])
        .with("CARGO_HOME", "/proc/nowhere")
        .lacks(&["cannot download the crates", "/proc/nowhere"]);
}

#[test]
fn a_target_folder_that_cannot_be_written_is_named() {
    Machine::without(&[])
        .with("CARGO_TARGET_DIR", "/proc/nowhere")
        .lacks(&["cannot write to /proc/nowhere"]);
}

#[test]
fn a_disk_that_is_too_full_for_a_build_is_named_with_what_it_needs() {
    Machine::without(&[])
        .with_program("df", "echo Avail; echo 700")
        .lacks(&["only 700 MiB are free", "needs 1500 MiB"]);
}

#[test]
fn no_rust_and_one_that_does_not_work_are_told_apart() {
    Machine::without(&["cargo"]).lacks(&["there is no Rust", "rustup.rs"]);
    Machine::without(&[])
        .with_program(
            "rustc",
            "echo 'error: rustup has no default toolchain' >&2; exit 1",
        )
        .lacks(&["Rust does not work", "no default toolchain"]);
    Machine::without(&[])
        .with_program("rustc", "echo 'rustc 1.70.0 (90c541806 2023-05-31)'")
        .lacks(&["Rust 1.70.0 is too old"]);
}

#[test]
fn all_that_is_wrong_is_said_at_once() {
    Machine::without(&["c++", "g++"])
        .with_library("libclang-cpp.so.14", &headless("14.0.6"))
        .with_program("df", "echo Avail; echo 700")
        .lacks(&["C++ compiler", "libclang", "700 MiB"]);
}

//! Kernels to PTX: with nvcc where it is found, else the committed PTX, if it is up to date.
//!
//! Every `kernels/*.cu` becomes one `.ptx` in `OUT_DIR`, from which `src/gpu` includes it. Committed PTX begins with
//! the SHA-256 of what it was made from (the file and all headers), so that stale PTX fails the build instead of
//! running something other than the sources. `ENGINE_RENEW_PTX=1 cargo build` writes `kernels/ptx` anew.
//!
//! nvcc is looked for as `NVCC`, then in `CUDA_HOME/bin`, then in the virtual environment `VIRTUAL_ENV` with the PyPI
//! packages `nvidia-cuda-nvcc`, `nvidia-cuda-runtime`, `nvidia-nvvm`, `nvidia-cuda-crt` and `nvidia-cuda-cccl` (13.0),
//! then in `PATH`. `NVCC=none` looks nowhere.

use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

/// The oldest PTX version that has all the instructions that the kernels use: the older, the more drivers load it.
/// nvcc writes the version of its own release.
const PTX_VERSION: &str = "7.4";

/// `-fmad=true` is the default and meant; no `--use_fast_math`: divisions, roots and denormals are IEEE's.
const FLAGS: [&str; 7] =
    ["-ptx", "-arch=compute_80", "-std=c++17", "-O3", "-lineinfo", "--Werror=all-warnings", "-diag-suppress=177"];

const RENEW: &str = "ENGINE_RENEW_PTX=1 cargo build";

fn main() {
    if let Err(message) = run() {
        // Cargo shows a panic's text; standard error alone would be buried.
        println!("cargo::error={message}");
        std::process::exit(1);
    }
}

fn run() -> Result<(), String> {
    let root = PathBuf::from(variable("CARGO_MANIFEST_DIR")?);
    let kernels = root.join("kernels");
    let target = PathBuf::from(variable("OUT_DIR")?);
    println!("cargo::rerun-if-changed=kernels");
    println!("cargo::rerun-if-changed=build.rs");
    for name in ["NVCC", "CUDA_HOME", "VIRTUAL_ENV", "PATH", "ENGINE_RENEW_PTX"] {
        println!("cargo::rerun-if-env-changed={name}");
    }
    let renews = env::var_os("ENGINE_RENEW_PTX").is_some_and(|value| value == "1");
    let nvcc = find_nvcc();
    if renews && nvcc.is_none() {
        return Err("ENGINE_RENEW_PTX=1 needs nvcc, and there is none in NVCC, CUDA_HOME, VIRTUAL_ENV or PATH".into());
    }
    let headers = files(&kernels, "cuh")?;
    for source in files(&kernels, "cu")? {
        let stem = source.file_stem().expect("it has an extension").to_string_lossy().into_owned();
        let digest = digest(&source, &headers)?;
        let committed = kernels.join("ptx").join(format!("{stem}.ptx"));
        let current = fs::read_to_string(&committed).ok().filter(|text| text.starts_with(&header(&stem, &digest)));
        let text = match (&nvcc, current) {
            (_, Some(text)) if !renews => text,
            (Some(nvcc), _) => format!("{}{}", header(&stem, &digest), compile(nvcc, &source, &target)?),
            (None, Some(text)) => text,
            (None, None) => {
                return Err(format!(
                    "kernels/ptx/{stem}.ptx was not made from kernels/{stem}.cu as it is now, and there is no nvcc to \
                     compile it: run {RENEW} where nvcc is (see build.rs)"
                ));
            }
        };
        if renews {
            write(&committed, &text)?;
        }
        write(&target.join(format!("{stem}.ptx")), &text)?;
    }
    Ok(())
}

fn variable(name: &str) -> Result<String, String> {
    env::var(name).map_err(|error| format!("{name}: {error}"))
}

/// First lines of a PTX file: where it comes from.
fn header(stem: &str, digest: &str) -> String {
    format!("// Made from kernels/{stem}.cu by build.rs. To renew: {RENEW}\n// sources: sha256 {digest}\n")
}

/// The folder's files of this extension, by name.
fn files(folder: &Path, extension: &str) -> Result<Vec<PathBuf>, String> {
    let entries = fs::read_dir(folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    let mut list: Vec<PathBuf> = entries
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .filter(|path| path.extension().is_some_and(|found| found == extension))
        .collect();
    list.sort();
    Ok(list)
}

/// Of the source, all headers, the flags and the version: whatever changes the PTX.
fn digest(source: &Path, headers: &[PathBuf]) -> Result<String, String> {
    let mut hash = Sha256::new();
    for path in std::iter::once(source).chain(headers.iter().map(PathBuf::as_path)) {
        let bytes = fs::read(path).map_err(|error| format!("{}: {error}", path.display()))?;
        hash.update(path.file_name().expect("a file has a name").as_encoded_bytes());
        hash.update((bytes.len() as u64).to_le_bytes());
        hash.update(&bytes);
    }
    hash.update(FLAGS.join(" "));
    hash.update(PTX_VERSION);
    Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

fn find_nvcc() -> Option<PathBuf> {
    if let Some(path) = env::var_os("NVCC") {
        return Some(PathBuf::from(path)).filter(|path| path.is_file());
    }
    let in_home = env::var_os("CUDA_HOME").map(|home| PathBuf::from(home).join("bin/nvcc"));
    let in_environment = env::var_os("VIRTUAL_ENV").and_then(|home| {
        let versions = fs::read_dir(PathBuf::from(home).join("lib")).ok()?;
        versions
            .filter_map(|entry| entry.ok().map(|entry| entry.path().join("site-packages/nvidia/cu13/bin/nvcc")))
            .find(|path| path.is_file())
    });
    let in_path = env::var_os("PATH");
    let in_path = in_path.iter().flat_map(|path| env::split_paths(path).collect::<Vec<_>>());
    in_home.into_iter().chain(in_environment).chain(in_path.map(|folder| folder.join("nvcc"))).find(|p| p.is_file())
}

/// PTX of one file, with the lowered version and no trace of this machine's folders.
fn compile(nvcc: &Path, source: &Path, target: &Path) -> Result<String, String> {
    let name = source.file_name().expect("a file has a name");
    let output = target.join(name).with_extension("nvcc.ptx");
    let kernels = source.parent().expect("it lies in a folder");
    let root = kernels.parent().expect("kernels lies in the project");
    let mut command = Command::new(nvcc);
    // Relative paths, so that line information names kernels/x.cu on every machine.
    command.current_dir(root).args(FLAGS).arg("-o").arg(&output).arg(Path::new("kernels").join(name));
    let result = command.output().map_err(|error| format!("{}: {error}", nvcc.display()))?;
    if !result.status.success() {
        let text = String::from_utf8_lossy(&result.stderr);
        let mut lines = text.lines().chain(std::str::from_utf8(&result.stdout).unwrap_or_default().lines());
        let first = lines.find(|line| line.contains("error")).unwrap_or("no message").to_owned();
        println!("cargo::warning=nvcc: {}", text.replace('\n', "\ncargo::warning="));
        return Err(format!("nvcc failed on {}: {first}", source.display()));
    }
    let text = fs::read_to_string(&output).map_err(|error| format!("{}: {error}", output.display()))?;
    Ok(normalise(&text, root))
}

/// Lowers `.version` and leaves out what later ones added, makes file names relative to the project (or the toolkit), and
/// leaves out the names of inlined functions, which hold a hash of the file's path, so that every machine that compiles
/// the same sources writes the same text. Lines and columns stay.
fn normalise(text: &str, root: &Path) -> String {
    let root = format!("{}/", root.display());
    let mut lines = Vec::new();
    let mut is_in_names = false;
    for line in text.lines() {
        is_in_names |= line.trim_start().starts_with(".section\t.debug_str");
        if is_in_names {
            is_in_names = line.trim() != "}";
        } else if line.trim_start().starts_with(".pragma \"used_bytes_mask") {
            // A hint about the load that follows, which older versions do not know and nothing depends on.
        } else if let Some((place, _)) = line.split_once(", function_name ") {
            lines.push(place.to_owned());
        } else if line.starts_with(".version ") {
            lines.push(format!(".version {PTX_VERSION}"));
        } else if let Some((start, path)) =
            line.trim_start().strip_prefix(".file").and_then(|rest| rest.split_once('"'))
        {
            let path = path.trim_end_matches('"').replace(&root, "");
            let path = match path.rsplit_once("/include/") {
                Some((_, name)) => name.to_owned(),
                None => path,
            };
            // Without size and date of the file, which nvcc may append.
            let path = path.split('"').next().unwrap_or_default();
            lines.push(format!(".file{start}\"{path}\""));
        } else if !line.trim_start().starts_with("//") {
            lines.push(line.trim_end().to_owned());
        }
    }
    let start = lines.iter().position(|line| !line.is_empty()).unwrap_or(0);
    lines.drain(..start);
    lines.push(String::new());
    lines.join("\n")
}

fn write(path: &Path, text: &str) -> Result<(), String> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    }
    fs::write(path, text).map_err(|error| format!("{}: {error}", path.display()))
}

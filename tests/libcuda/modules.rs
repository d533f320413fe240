//! Loading: errors with their place, variables, libraries, the linker, fat binaries.

use std::ffi::CString;

use crate::KERNELS;
use crate::driver::{Session, at, code, download, get, get_int, launch, ok, upload};

const INVALID_IMAGE: u32 = 200;
const NO_BINARY: u32 = 209;
const INVALID_PTX: u32 = 218;
const NOT_FOUND: u32 = 500;

#[test]
fn errors_of_the_text_come_in_the_log_buffer_with_their_place() {
    let _session = Session::new(KERNELS);
    let text = CString::new(".version 7.0\n.target sm_80\n.address_size 64\n.entry k() {\n  add.u32 ;\n}\n").unwrap();
    let mut log = [0u8; 200];
    // CU_JIT_ERROR_LOG_BUFFER, its size, CU_JIT_WALL_TIME.
    let mut options = [5u32, 6, 2];
    let mut values = [at(&mut log), 200, 0];
    let mut module = 0usize;
    let arguments = [at(&mut module), text.as_ptr() as usize, 3, at(&mut options), at(&mut values)];
    assert_eq!(code("cuModuleLoadDataEx", &arguments), INVALID_PTX);
    let message = String::from_utf8_lossy(&log[..values[1]]).into_owned();
    assert!(message.starts_with("ptx:5"), "{message}");
    assert_eq!(log[values[1]], 0);
    // A small buffer gets what fits.
    values[1] = 6;
    assert_eq!(code("cuModuleLoadDataEx", &arguments), INVALID_PTX);
    assert_eq!((values[1], &log[..6]), (5, b"ptx:5\0".as_slice()));
}

#[test]
fn variables_of_a_module_are_reached_by_name() {
    let session = Session::new(KERNELS);
    let (mut address, mut bytes) = (0usize, 0usize);
    let name = c"counter".as_ptr() as usize;
    ok("cuModuleGetGlobal_v2", &[at(&mut address), at(&mut bytes), session.module, name]);
    assert_eq!((bytes, download::<u32>(address, 1)), (4, vec![7]));
    assert_eq!(launch(session.function("count"), 3, 5, 0, &[]), 0);
    assert_eq!(download::<u32>(address, 1), [22]);
    let unknown = c"nothing".as_ptr() as usize;
    assert_eq!(code("cuModuleGetGlobal_v2", &[at(&mut address), 0, session.module, unknown]), NOT_FOUND);
    assert_eq!(code("cuModuleGetFunction", &[at(&mut address), session.module, unknown]), NOT_FOUND);
    assert_eq!(get_int("cuModuleGetFunctionCount", &[session.module]), 8);
}

#[test]
fn a_library_belongs_to_no_context() {
    ok("cuInit", &[0]);
    let text = CString::new(KERNELS).unwrap();
    let library = get("cuLibraryLoadData", &[text.as_ptr() as usize, 0, 0, 0, 0, 0, 0]);
    let kernel = get("cuLibraryGetKernel", &[library, c"step".as_ptr() as usize]);
    {
        let _session = Session::new(KERNELS);
        let function = get("cuKernelGetFunction", &[kernel]);
        let data = upload(&[1u32; 4]);
        assert_eq!(launch(function, 1, 4, 0, &[data, 6]), 0);
        assert_eq!(launch(kernel, 1, 4, 0, &[data, 6]), 0);
        assert_eq!(download::<u32>(data, 4), [13; 4]);
        let (mut offset, mut bytes) = (9usize, 9usize);
        ok("cuKernelGetParamInfo", &[kernel, 1, at(&mut offset), at(&mut bytes)]);
        assert_eq!((offset, bytes), (8, 4));
        assert_eq!(code("cuKernelGetParamInfo", &[kernel, 2, at(&mut offset), 0]), 1);
    }
    ok("cuLibraryUnload", &[library]);
    assert_eq!(code("cuKernelGetFunction", &[at(&mut 0usize), kernel]), 400);
}

#[test]
fn the_linker_joins_texts_and_its_output_loads() {
    const HEAD: &str = ".version 7.0\n.target sm_80\n.address_size 64\n";
    let _session = Session::new(KERNELS);
    let caller = format!(
        "{HEAD}.extern .func (.param .b32 r) twice (.param .b32 x);\n.visible .entry k(.param .u64 out) {{\n\
         .reg .b64 %rd<2>;\n.reg .b32 %r<2>;\nld.param.u64 %rd1, [out];\n{{\n.param .b32 x;\n.param .b32 r;\n\
         st.param.b32 [x], 21;\ncall (r), twice, (x);\nld.param.b32 %r1, [r];\n}}\nst.global.u32 [%rd1], %r1;\nret;\n}}\n"
    );
    let callee = format!(
        "{HEAD}.visible .func (.param .b32 r) twice (.param .b32 x) {{\n.reg .b32 %r<2>;\nld.param.b32 %r1, [x];\n\
         add.u32 %r1, %r1, %r1;\nst.param.b32 [r], %r1;\nret;\n}}\n"
    );
    let mut state = 0usize;
    ok("cuLinkCreate_v2", &[0, 0, 0, at(&mut state)]);
    for text in [&callee, &caller] {
        ok("cuLinkAddData_v2", &[state, 1, text.as_ptr() as usize, text.len(), c"part".as_ptr() as usize, 0, 0, 0]);
    }
    let (mut cubin, mut bytes) = (0usize, 0usize);
    ok("cuLinkComplete", &[state, at(&mut cubin), at(&mut bytes)]);
    assert!(bytes > callee.len());
    let module = get("cuModuleLoadData", &[cubin]);
    ok("cuLinkDestroy", &[state]);
    let function = get("cuModuleGetFunction", &[module, c"k".as_ptr() as usize]);
    let out = upload(&[0u32]);
    assert_eq!(launch(function, 1, 1, 0, &[out]), 0);
    assert_eq!(download::<u32>(out, 1), [42]);
    ok("cuModuleUnload", &[module]);
    assert_eq!(launch(function, 1, 1, 0, &[out]), 400);
}

#[test]
fn the_device_runtime_brings_a_barrier_of_all_blocks() {
    let _session = Session::new(KERNELS);
    // Blocks pass a token: in round r, block r writes, and all the others must see it after the barrier.
    let text = ".version 7.0\n.target sm_80\n.address_size 64\n\
        .extern .func (.param .b64 g) cudaCGGetIntrinsicHandle (.param .b32 s);\n\
        .extern .func (.param .b32 e) cudaCGSynchronize (.param .b64 g, .param .b32 f);\n\
        .visible .entry k(.param .u64 data) {\n.reg .pred %p<3>;\n.reg .b32 %r<9>;\n.reg .b64 %rd<6>;\n\
        ld.param.u64 %rd1, [data];\nmov.u32 %r1, %ctaid.x;\nmov.u32 %r2, %nctaid.x;\nmov.u32 %r3, 0;\n\
        mad.wide.u32 %rd4, %r1, 4, %rd1;\n\
        {\n.param .b32 s;\n.param .b64 g;\nst.param.b32 [s], 1;\ncall (g), cudaCGGetIntrinsicHandle, (s);\n\
        ld.param.b64 %rd2, [g];\n}\n\
        ROUND:\nsetp.ne.u32 %p1, %r3, %r1;\n@%p1 bra WAIT;\nadd.u32 %r4, %r3, 100;\nst.global.u32 [%rd1], %r4;\n\
        WAIT:\n{\n.param .b64 g;\n.param .b32 f;\n.param .b32 e;\nst.param.b64 [g], %rd2;\nst.param.b32 [f], 0;\n\
        call (e), cudaCGSynchronize, (g, f);\nld.param.b32 %r5, [e];\n}\n\
        ld.volatile.global.u32 %r6, [%rd1];\nld.global.u32 %r7, [%rd4 + 4];\nadd.u32 %r7, %r7, %r6;\n\
        st.global.u32 [%rd4 + 4], %r7;\n\
        {\n.param .b64 g;\n.param .b32 f;\n.param .b32 e;\nst.param.b64 [g], %rd2;\nst.param.b32 [f], 0;\n\
        call (e), cudaCGSynchronize, (g, f);\nld.param.b32 %r5, [e];\n}\n\
        add.u32 %r3, %r3, 1;\nsetp.lt.u32 %p2, %r3, %r2;\n@%p2 bra ROUND;\nret;\n}\n";
    let text = CString::new(text).unwrap();
    let mut state = 0usize;
    ok("cuLinkCreate_v2", &[0, 0, 0, at(&mut state)]);
    let name = c"libcudadevrt.a".as_ptr() as usize;
    ok("cuLinkAddData_v2", &[state, 1, text.as_ptr() as usize, text.as_bytes().len(), 0, 0, 0, 0]);
    ok("cuLinkAddData_v2", &[state, 4, name, 14, name, 0, 0, 0]);
    assert_eq!(code("cuLinkAddData_v2", &[state, 4, name, 14, c"other.a".as_ptr() as usize, 0, 0, 0]), 801);
    let (mut cubin, mut bytes) = (0usize, 0usize);
    ok("cuLinkComplete", &[state, at(&mut cubin), at(&mut bytes)]);
    let module = get("cuModuleLoadData", &[cubin]);
    let function = get("cuModuleGetFunction", &[module, c"k".as_ptr() as usize]);
    let mut data = upload(&[0u32; 8]);
    let mut params = [at(&mut data)];
    ok("cuLaunchCooperativeKernel", &[function, 7, 1, 1, 1, 1, 1, 0, 0, at(&mut params)]);
    // Every block saw 100, 101, ... 106.
    assert_eq!(download::<u32>(data, 8), [106, 721, 721, 721, 721, 721, 721, 721]);
}

/// A fat binary with these entries: kind, architecture, flags, payload.
fn fat_binary(entries: &[(u16, u32, u64, &[u8], u64)]) -> Vec<u8> {
    let mut body = Vec::new();
    for (kind, architecture, flags, payload, unpacked) in entries {
        let padded = payload.len().next_multiple_of(8);
        body.extend(kind.to_le_bytes());
        body.extend(0x101u16.to_le_bytes());
        body.extend(64u32.to_le_bytes());
        body.extend((padded as u64).to_le_bytes());
        body.extend((payload.len() as u32).to_le_bytes());
        body.extend([0; 8]);
        body.extend(architecture.to_le_bytes());
        body.extend([0; 8]);
        body.extend(flags.to_le_bytes());
        body.extend([0; 8]);
        body.extend(unpacked.to_le_bytes());
        body.extend_from_slice(payload);
        body.resize(body.len() + padded - payload.len(), 0);
    }
    let mut bytes = 0xBA55_ED50u32.to_le_bytes().to_vec();
    bytes.extend([1, 0, 16, 0]);
    bytes.extend((body.len() as u64).to_le_bytes());
    bytes.extend(body);
    bytes
}

#[test]
fn a_fat_binary_gives_its_newest_ptx_for_the_device() {
    let _session = Session::new(KERNELS);
    let text = |name: &str| format!(".version 7.0\n.target sm_75\n.address_size 64\n.entry {name}() {{ ret; }}\n\0");
    let (old, new, future) = (text("old"), text("new"), text("future"));
    // An LZ4 block of literals only, as long as its length byte allows.
    let mut packed = vec![0xF0, (new.len() - 15) as u8];
    packed.extend_from_slice(new.as_bytes());
    let image = fat_binary(&[
        (2, 80, 0, b"machine code", 0),
        (1, 70, 0, old.as_bytes(), 0),
        (1, 75, 0x2000, &packed, new.len() as u64),
        (1, 120, 0, future.as_bytes(), 0),
    ]);
    let module = get("cuModuleLoadData", &[image.as_ptr() as usize]);
    get("cuModuleGetFunction", &[module, c"new".as_ptr() as usize]);
    let mut wrapper = [0x1_4662_43B1usize, image.as_ptr() as usize, 0];
    get("cuModuleLoadFatBinary", &[at(&mut wrapper)]);
    let without = fat_binary(&[(2, 80, 0, b"machine code", 0)]);
    assert_eq!(code("cuModuleLoadData", &[at(&mut 0usize), without.as_ptr() as usize]), NO_BINARY);
}

#[test]
fn a_fat_binary_may_be_packed_with_zstd() {
    let _session = Session::new(KERNELS);
    let text = format!(
        ".version 7.0\n.target sm_75\n.address_size 64\n{}.entry packed() {{ ret; }}\n\0",
        "// again\n".repeat(99)
    );
    let packed = ruzstd::encoding::compress_to_vec(text.as_bytes(), ruzstd::encoding::CompressionLevel::Fastest);
    assert!(packed.len() < text.len() / 2);
    let load = |packed: &[u8], unpacked: usize| {
        let image = fat_binary(&[(1, 75, 0x8011, packed, unpacked as u64)]);
        let mut module = 0usize;
        (code("cuModuleLoadData", &[at(&mut module), image.as_ptr() as usize]), module)
    };
    let (answer, module) = load(&packed, text.len());
    assert_eq!(answer, 0);
    get("cuModuleGetFunction", &[module, c"packed".as_ptr() as usize]);
    assert_eq!(load(&packed, text.len() - 1).0, INVALID_IMAGE);
    assert_eq!(load(&packed[..packed.len() - 9], text.len()).0, INVALID_IMAGE);
    assert_eq!(load(b"no frame at all!", 16).0, INVALID_IMAGE);
}

#[test]
fn machine_code_and_noise_are_refused() {
    let _session = Session::new(KERNELS);
    let load = |image: &[u8]| code("cuModuleLoadData", &[at(&mut 0usize), image.as_ptr() as usize]);
    assert_eq!(load(b"\x7fELF\x02\x01\x01\0\0\0\0\0"), NO_BINARY);
    assert_eq!(load(b"\x01\x02\x03\x04\0"), INVALID_IMAGE);
    assert_eq!(load(b"\0\0\0\0"), INVALID_IMAGE);
    assert_eq!(load(b"hello there\0"), INVALID_PTX);
    assert_eq!(code("cuModuleLoad", &[at(&mut 0usize), c"/nowhere/x.ptx".as_ptr() as usize]), 301);
}

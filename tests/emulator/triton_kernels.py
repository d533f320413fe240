"""Makes the triton_*.ptx files beside this one: kernels of our own, compiled by Triton for sm_80 without a GPU."""
import sys
import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource


@triton.jit
def vector_add(x, y, out, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + i, tl.load(x + i, mask=i < n) + tl.load(y + i, mask=i < n), mask=i < n)


@triton.jit
def softmax(x, out, columns, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    i = tl.arange(0, BLOCK)
    v = tl.load(x + row * columns + i, mask=i < columns, other=-float("inf"))
    e = tl.exp(v - tl.max(v, 0))
    tl.store(out + row * columns + i, e / tl.sum(e, 0), mask=i < columns)


@triton.jit
def layer_norm(x, weight, bias, out, columns, epsilon, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    i = tl.arange(0, BLOCK)
    v = tl.load(x + row * columns + i, mask=i < columns, other=0.0)
    mean = tl.sum(v, 0) / columns
    d = tl.where(i < columns, v - mean, 0.0)
    r = 1.0 / tl.sqrt(tl.sum(d * d, 0) / columns + epsilon)
    w = tl.load(weight + i, mask=i < columns)
    tl.store(out + row * columns + i, d * r * w + tl.load(bias + i, mask=i < columns), mask=i < columns)


@triton.jit
def matmul(a, b, c, M, N, K, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr):
    m = tl.program_id(0) * BM + tl.arange(0, BM)
    n = tl.program_id(1) * BN + tl.arange(0, BN)
    k = tl.arange(0, BK)
    sums = tl.zeros((BM, BN), dtype=tl.float32)
    for start in range(0, K, BK):
        ta = tl.load(a + m[:, None] * K + (start + k)[None, :], mask=(m[:, None] < M) & ((start + k)[None, :] < K), other=0.0)
        tb = tl.load(b + (start + k)[:, None] * N + n[None, :], mask=((start + k)[:, None] < K) & (n[None, :] < N), other=0.0)
        sums = tl.dot(ta, tb, sums)
    tl.store(c + m[:, None] * N + n[None, :], sums, mask=(m[:, None] < M) & (n[None, :] < N))


@triton.jit
def attention(q, k, v, out, T, scale, BT: tl.constexpr, D: tl.constexpr):
    rows = tl.program_id(0) * BT + tl.arange(0, BT)
    d = tl.arange(0, D)
    tq = tl.load(q + rows[:, None] * D + d[None, :], mask=rows[:, None] < T, other=0.0)
    top = tl.full((BT,), -float("inf"), tl.float32)
    total = tl.zeros((BT,), tl.float32)
    acc = tl.zeros((BT, D), tl.float32)
    for start in range(0, T, BT):
        columns = start + tl.arange(0, BT)
        tk = tl.load(k + columns[None, :] * D + d[:, None], mask=columns[None, :] < T, other=0.0)
        scores = tl.dot(tq, tk) * scale
        scores = tl.where((columns[None, :] <= rows[:, None]) & (columns[None, :] < T), scores, -float("inf"))
        new_top = tl.maximum(top, tl.max(scores, 1))
        p = tl.exp(scores - new_top[:, None])
        shrink = tl.exp(top - new_top)
        total = total * shrink + tl.sum(p, 1)
        tv = tl.load(v + columns[:, None] * D + d[None, :], mask=columns[:, None] < T, other=0.0)
        acc = acc * shrink[:, None] + tl.dot(p.to(tv.dtype), tv)
        top = new_top
    tl.store(out + rows[:, None] * D + d[None, :], acc / total[:, None], mask=rows[:, None] < T)


def emit(name, kernel, types, constants, **options):
    signature = {**types, **{key: "constexpr" for key in constants}}
    attributes = {(i,): [["tt.divisibility", 16]] for i, ty in enumerate(signature.values()) if ty.startswith("*")}
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=attributes)
    made = triton.compile(source, target=GPUTarget("cuda", 80, 32), options=options)
    # Without the debug sections, which name local paths.
    lines = [line for line in made.asm["ptx"].split("\n") if ".file" not in line and ".loc" not in line and "inlined_at" not in line]
    text = "\n".join(lines).split("\t.section")[0] + "\n"
    open(f"{sys.argv[1]}/triton_{name}.ptx", "w").write(text)
    print(name, made.metadata.shared, made.metadata.num_warps)


f = "*fp32"
emit("vector_add", vector_add, dict(x=f, y=f, out=f, n="i32"), dict(BLOCK=1024), num_warps=4)
emit("softmax", softmax, dict(x=f, out=f, columns="i32"), dict(BLOCK=256), num_warps=4)
emit("layer_norm", layer_norm, dict(x=f, weight=f, bias=f, out=f, columns="i32", epsilon="fp32"), dict(BLOCK=256), num_warps=4)
sizes = dict(BM=64, BN=64, BK=32)
emit("matmul_bf16", matmul, dict(a="*bf16", b="*bf16", c=f, M="i32", N="i32", K="i32"), sizes, num_warps=4, num_stages=3)
emit("matmul_tf32", matmul, dict(a=f, b=f, c=f, M="i32", N="i32", K="i32"), sizes, num_warps=4, num_stages=3)
emit("attention", attention, dict(q="*bf16", k="*bf16", v="*bf16", out=f, T="i32", scale="fp32"), dict(BT=64, D=64), num_warps=4)

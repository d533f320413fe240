// Linear layer: z = x · Wᵀ + b, y = activation(z) + residual, and its gradients.
//
// Three matrix products, each with everything else in its epilogue (`gemm.cuh` has the product itself):
//   forward         z  = x · Wᵀ    both operands with the depth last; bias, activation and residual as it is stored
//   input gradient dx = dz · W     may apply an activation's derivative as it is stored (the hidden layer of an FFN)
//   weight gradient dW = dzᵀ · x   both operands with the depth first
// The two gradients may be cut along their depth where their results are too small to fill a GPU: each piece is a
// product of its own, and `linear_sum_parts` adds them in order. SwiGLU's gate and up-projection meet in the registers
// of one thread (`Span`), forward and backward, so it takes no pass of its own either.
//
// Traffic: the least is each operand and each result once. A block tile of E x E reads (2 / E) * rows * columns * depth
// elements instead, most of them from the L2 cache: blocks that run side by side share rows or columns.
#include "gemm.cuh"

using namespace engine;

// As `gpu::linear` numbers them.
constexpr unsigned IDENTITY = 0, RELU = 1, GELU_TANH = 2, GELU_ERF = 3, SWIGLU = 4, TANH = 5;

// 0.5 * (1 + tanh(u)) is the logistic function of 2u, which has no cancellation.
__device__ __forceinline__ float logistic(float x) { return 1.0f / (1.0f + expf(-x)); }

constexpr float GELU_LINEAR = 1.5957691216f;   // 2 √(2/π)
constexpr float GELU_CUBIC = 0.0713548162726f;  // 2 √(2/π) 0.044715

// activation(z), of one variable. The last multiplication is rounded by itself wherever this is inlined: a residual
// added to it must not change its bits, which a recomputed activation has to repeat.
__device__ __forceinline__ float activate(unsigned activation, float z) {
    switch (activation) {
        // NaN stays NaN.
        case RELU: return z <= 0.0f ? 0.0f : z;
        case GELU_TANH: return __fmul_rn(z, logistic(z * fmaf(GELU_CUBIC * z, z, GELU_LINEAR)));
        case GELU_ERF: return __fmul_rn(z, 0.5f * (1.0f + erff(z * 0.70710678f)));
        case TANH: return tanhf(z);
        default: return z;
    }
}

// d activation / dz
__device__ __forceinline__ float derivative(unsigned activation, float z) {
    switch (activation) {
        case RELU: return z > 0.0f ? 1.0f : 0.0f;
        case GELU_TANH: {
            const float s = logistic(z * fmaf(GELU_CUBIC * z, z, GELU_LINEAR));
            return s + z * s * (1.0f - s) * fmaf(3.0f * GELU_CUBIC * z, z, GELU_LINEAR);
        }
        case GELU_ERF: {
            const float density = 0.39894228f * expf(-0.5f * z * z);
            return 0.5f * (1.0f + erff(z * 0.70710678f)) + z * density;
        }
        case TANH: {
            const float t = tanhf(z);
            return fmaf(-t, t, 1.0f);
        }
        default: return 1.0f;
    }
}

__device__ __forceinline__ float swiglu(float gate, float up) { return __fmul_rn(__fmul_rn(gate, logistic(gate)), up); }

// Gradients of swiglu for the gradient of its result.
__device__ __forceinline__ void swiglu_gradient(float gate, float up, float grad, float& grad_gate, float& grad_up) {
    const float s = logistic(gate);
    grad_gate = grad * up * (s + gate * s * (1.0f - s));
    grad_up = grad * (gate * s);
}

__device__ __forceinline__ float4 activate(unsigned activation, float4 z) {
    if (activation == IDENTITY) return z;
    return make_float4(activate(activation, z.x), activate(activation, z.y), activate(activation, z.z),
                       activate(activation, z.w));
}

// What happens to up to four neighbouring results of the forward product on their way to memory.
struct ForwardEpilogue {
    const float *bias, *residual;
    float *pre_activation, *output;
    unsigned outputs, activation;
    bool has_quads;

    __device__ __forceinline__ ForwardEpilogue(const float* bias, const float* residual, float* pre_activation,
                                               float* output, unsigned outputs, unsigned activation)
        : bias(bias), residual(residual), pre_activation(pre_activation), output(output), outputs(outputs),
          activation(activation),
          has_quads(outputs % 4 == 0 && aligned_16(bias) && aligned_16(residual) && aligned_16(pre_activation) &&
                    aligned_16(output)) {}

    // `up` is read for SwiGLU alone.
    __device__ __forceinline__ void store(unsigned row, unsigned column, float4 z, float4 up, unsigned count) const {
        const bool is_quad = has_quads && count >= 4;
        if (activation == SWIGLU) {
            if (bias) {
                z = z + load_quad(bias + column, count, is_quad);
                up = up + load_quad(bias + outputs + column, count, is_quad);
            }
            float* kept = pre_activation + row * 2ull * outputs + column;
            store_quad(kept, z, count, is_quad);
            store_quad(kept + outputs, up, count, is_quad);
            z = make_float4(swiglu(z.x, up.x), swiglu(z.y, up.y), swiglu(z.z, up.z), swiglu(z.w, up.w));
        } else {
            if (bias) z = z + load_quad(bias + column, count, is_quad);
            if (pre_activation) {
                store_quad(pre_activation + (unsigned long long)row * outputs + column, z, count, is_quad);
            }
            z = activate(activation, z);
        }
        const unsigned long long place = (unsigned long long)row * outputs + column;
        if (residual) z = z + load_quad(residual + place, count, is_quad);
        store_quad(output + place, z, count, is_quad);
    }
};

// The same for a gradient: with an activation it becomes the gradient of the pre-activation `z`.
struct GradientEpilogue {
    const float* z;
    float* target;
    unsigned columns, activation, accumulate;
    bool has_quads;

    __device__ __forceinline__ GradientEpilogue(const float* z, float* target, unsigned columns, unsigned activation,
                                                unsigned accumulate)
        : z(z), target(target), columns(columns), activation(activation), accumulate(accumulate),
          has_quads(columns % 4 == 0 && aligned_16(z) && aligned_16(target)) {}

    __device__ __forceinline__ void store(unsigned row, unsigned column, float4 grad, unsigned count) const {
        const bool is_quad = has_quads && count >= 4;
        if (activation == SWIGLU) {
            const unsigned long long place = row * 2ull * columns + column;
            const float4 gate = load_quad(z + place, count, is_quad);
            const float4 up = load_quad(z + place + columns, count, is_quad);
            float4 grad_gate, grad_up;
            swiglu_gradient(gate.x, up.x, grad.x, grad_gate.x, grad_up.x);
            swiglu_gradient(gate.y, up.y, grad.y, grad_gate.y, grad_up.y);
            swiglu_gradient(gate.z, up.z, grad.z, grad_gate.z, grad_up.z);
            swiglu_gradient(gate.w, up.w, grad.w, grad_gate.w, grad_up.w);
            store_quad(target + place, grad_gate, count, is_quad);
            store_quad(target + place + columns, grad_up, count, is_quad);
            return;
        }
        const unsigned long long place = (unsigned long long)row * columns + column;
        if (activation != IDENTITY) {
            const float4 at = load_quad(z + place, count, is_quad);
            grad = make_float4(grad.x * derivative(activation, at.x), grad.y * derivative(activation, at.y),
                               grad.z * derivative(activation, at.z), grad.w * derivative(activation, at.w));
        }
        if (accumulate) grad = grad + load_quad(target + place, count, is_quad);
        store_quad(target + place, grad, count, is_quad);
    }
};

template <unsigned Extent>
__device__ __forceinline__ void forward(const float* input, const float* weight, const ForwardEpilogue& epilogue,
                                        unsigned rows, unsigned depth) {
    using Tile = Product<Extent>;
    __shared__ __align__(16) float shared[Tile::SHARED_FLOATS];
    const bool has_pairs = epilogue.activation == SWIGLU;
    const unsigned outputs = epilogue.outputs;
    const unsigned first_row = blockIdx.x * Extent, first_column = blockIdx.y * (has_pairs ? Extent / 2 : Extent);
    DepthLast<Extent, Tile::THREADS> left(input, depth, Span{first_row, rows, 0}, 0);
    DepthLast<Extent, Tile::THREADS> right(weight, depth, Span{first_column, outputs, has_pairs ? outputs : 0}, 0);
    Tile product;
    product.multiply(shared, left, right, 0, depth);
    const unsigned column = first_column + (has_pairs ? Tile::first_column() / 64 * 32 + Tile::first_column() % 32
                                                      : Tile::first_column());
    product.each_row(shared, first_row, rows, [&](unsigned row, auto quads) {
#pragma unroll 1
        for (unsigned which = 0; which < (has_pairs ? 1 : 2); ++which) {
            const unsigned at = column + which * 32;
            if (at >= outputs) break;
            const float4 up = has_pairs ? quads(1) : float4();
            epilogue.store(row, at, quads(which), up, outputs - at);
        }
    });
}

// result (rows, columns) = left (rows, depth) · right (depth, columns), of the depths of part blockIdx.z. How the left
// operand lies its type says; the right one has the depth first.
template <unsigned Extent, class Left>
__device__ __forceinline__ void gradient(const float* left_memory, unsigned left_stride, const float* right_memory,
                                         GradientEpilogue epilogue, unsigned rows, unsigned depth,
                                         unsigned depth_per_part) {
    using Tile = Product<Extent>;
    __shared__ __align__(16) float shared[Tile::SHARED_FLOATS];
    const unsigned columns = epilogue.columns;
    const unsigned first_row = blockIdx.x * Extent, first_column = blockIdx.y * Extent;
    const unsigned start = blockIdx.z * depth_per_part, end = min(depth, start + depth_per_part);
    Left left(left_memory, left_stride, Span{first_row, rows, 0}, start);
    DepthFirst<Extent, Tile::THREADS> right(right_memory, columns, Span{first_column, columns, 0}, start);
    Tile product;
    product.multiply(shared, left, right, start, end);
    // Here rather than before the product, where it would take two registers from it.
    epilogue.target += (unsigned long long)blockIdx.z * rows * columns;
    product.each_row(shared, first_row, rows, [&](unsigned row, auto quads) {
#pragma unroll 1
        for (unsigned which = 0; which < 2; ++which) {
            const unsigned at = first_column + Tile::first_column() + which * 32;
            if (at < columns) epilogue.store(row, at, quads(which), columns - at);
        }
    });
}

// Sum over the depth of one row of each operand, by a warp; the same in every lane.
__device__ __forceinline__ float warp_dot(const float* left, const float* right, unsigned depth, bool has_quads) {
    const unsigned lane = threadIdx.x % WARP;
    float sum = 0.0f;
    if (has_quads) {
#pragma unroll 4
        for (unsigned k = lane * 4; k < depth; k += 4 * WARP) {
            const float4 a = *reinterpret_cast<const float4*>(left + k);
            const float4 b = *reinterpret_cast<const float4*>(right + k);
            sum = fmaf(a.w, b.w, fmaf(a.z, b.z, fmaf(a.y, b.y, fmaf(a.x, b.x, sum))));
        }
    } else {
#pragma unroll 4
        for (unsigned k = lane; k < depth; k += WARP) sum = fmaf(left[k], right[k], sum);
    }
    return warp_sum(sum);
}

// The forward pass for a few rows (generation): a warp for each element of the output, whose row of the weight it reads
// once, at the speed of memory.
//
// Arguments and formula: as linear_forward_large.
// Launch: (ceil(outputs / 8), rows) blocks of 256 threads. No shared memory.
// Traffic: each row of the input reads the weight again, from the L2 cache where it fits; for one row it is the least.
extern "C" __global__ void __launch_bounds__(256)
    linear_forward_few_rows(const float* input, const float* weight, const float* bias, const float* residual,
                            float* pre_activation, float* output, unsigned rows, unsigned outputs, unsigned depth,
                            unsigned activation) {
    const unsigned column = blockIdx.x * (blockDim.x / WARP) + threadIdx.x / WARP, row = blockIdx.y;
    if (column >= outputs) return;
    const bool has_quads = depth % 4 == 0 && aligned_16(input) && aligned_16(weight);
    const float* x = input + (unsigned long long)row * depth;
    const float z = warp_dot(x, weight + (unsigned long long)column * depth, depth, has_quads);
    float up = 0.0f;
    if (activation == SWIGLU) {
        up = warp_dot(x, weight + ((unsigned long long)outputs + column) * depth, depth, has_quads);
    }
    if (threadIdx.x % WARP == 0) {
        const ForwardEpilogue epilogue(bias, residual, pre_activation, output, outputs, activation);
        epilogue.store(row, column, make_float4(z, 0.0f, 0.0f, 0.0f), make_float4(up, 0.0f, 0.0f, 0.0f), 1);
    }
}

// y = activation(z), as the forward pass computes it, bit for bit.
//
// z: (rows, outputs) f32, for SwiGLU (rows, 2 * outputs), gates first; output: (rows, outputs) f32.
// Launch: any (x, y) grid of any one-dimensional blocks; x strides over columns, y over rows. No shared memory.
// Traffic: each element once, the least.
extern "C" __global__ void __launch_bounds__(256)
    linear_activate(const float* z, float* output, unsigned rows, unsigned long long outputs, unsigned activation) {
    for (unsigned row = blockIdx.y; row < rows; row += gridDim.y) {
        for (unsigned long long column = (unsigned long long)blockIdx.x * blockDim.x + threadIdx.x; column < outputs;
             column += (unsigned long long)gridDim.x * blockDim.x) {
            const unsigned long long place = row * outputs + column;
            if (activation == SWIGLU) {
                const float* gate = z + place + row * outputs;
                output[place] = swiglu(gate[0], gate[outputs]);
            } else {
                output[place] = activate(activation, z[place]);
            }
        }
    }
}

// grad_z = grad_output ⊙ activation'(z)
//
// z, grad_z: (rows, outputs) f32, for SwiGLU (rows, 2 * outputs); grad_output: (rows, outputs) f32.
// Launch, shared memory, traffic: as linear_activate.
extern "C" __global__ void __launch_bounds__(256)
    linear_activation_backward(const float* z, const float* grad_output, float* grad_z, unsigned rows,
                               unsigned long long outputs, unsigned activation) {
    for (unsigned row = blockIdx.y; row < rows; row += gridDim.y) {
        for (unsigned long long column = (unsigned long long)blockIdx.x * blockDim.x + threadIdx.x; column < outputs;
             column += (unsigned long long)gridDim.x * blockDim.x) {
            const unsigned long long place = row * outputs + column;
            const float grad = grad_output[place];
            if (activation == SWIGLU) {
                const unsigned long long gate = place + row * outputs;
                swiglu_gradient(z[gate], z[gate + outputs], grad, grad_z[gate], grad_z[gate + outputs]);
            } else {
                grad_z[place] = grad * derivative(activation, z[place]);
            }
        }
    }
}

// sums[part][column] (or += with `accumulate`) = sum over the part's rows of matrix[row][column]: the bias gradient.
//
// matrix: (rows, columns) f32; sums: (parts, columns) f32. Part p has the rows from p * rows_per_part.
// Launch: (ceil(columns / 32), parts) blocks of 256 threads. 1 KiB of shared memory.
// Traffic: the matrix once, the least. Rows are summed by 8 threads, every eighth each, then those in order.
extern "C" __global__ void __launch_bounds__(256)
    linear_column_sums(const float* matrix, float* sums, unsigned rows, unsigned columns, unsigned rows_per_part,
                       unsigned accumulate) {
    __shared__ float shared[256];
    const unsigned column = blockIdx.x * WARP + threadIdx.x % WARP;
    const unsigned start = blockIdx.y * rows_per_part, end = min(rows, start + rows_per_part);
    float sum = 0.0f;
    if (column < columns) {
        const float* next = matrix + (unsigned long long)(start + threadIdx.x / WARP) * columns + column;
#pragma unroll 4
        for (unsigned row = start + threadIdx.x / WARP; row < end; row += 8) {
            sum += *next;
            next += 8ull * columns;
        }
    }
    shared[threadIdx.x] = sum;
    __syncthreads();
    if (threadIdx.x < WARP && column < columns) {
#pragma unroll
        for (unsigned i = 1; i < 8; ++i) sum += shared[i * WARP + threadIdx.x];
        write(sums[(unsigned long long)blockIdx.y * columns + column], sum, accumulate);
    }
}

// target (or += with `accumulate`) = sum over the parts, in order.
//
// parts: (parts, count) f32; target: (count) f32.
// Launch: any grid of any blocks; threads stride over the elements. No shared memory.
// Traffic: each element once, the least.
extern "C" __global__ void __launch_bounds__(256)
    linear_sum_parts(const float* parts, float* target, unsigned part_count, unsigned accumulate,
                     unsigned long long count) {
    const unsigned long long stride = (unsigned long long)gridDim.x * blockDim.x;
    for (unsigned long long i = (unsigned long long)blockIdx.x * blockDim.x + threadIdx.x; i < count; i += stride) {
        float sum = parts[i];
        for (unsigned part = 1; part < part_count; ++part) sum += parts[part * count + i];
        write(target[i], sum, accumulate);
    }
}

// y = activation(x · Wᵀ + b) + residual, of a tile of EXTENT x EXTENT elements per block.
//
// input: (rows, depth) f32; weight: (z_columns, depth) f32, where z_columns is outputs, or twice that for SwiGLU, gates
// first; bias: (z_columns) f32 or null; residual: (rows, outputs) f32 or null; pre_activation: (rows, z_columns) f32,
// or null (not for SwiGLU); output: (rows, outputs) f32. All row-major; any alignment, 16 bytes for the fast paths.
// Launch: (ceil(rows / EXTENT), ceil(z_columns / EXTENT)) blocks, for SwiGLU (..., ceil(outputs / (EXTENT / 2))), of
// 256 threads for EXTENT 128, of 64 for EXTENT 64.
// Shared memory: 256 * EXTENT bytes, static.
// Traffic: see the top of the file; output and pre-activation are written once, residual and bias tile read once.
#define FORWARD(NAME, EXTENT)                                                                                          \
    extern "C" __global__ void __launch_bounds__(Product<EXTENT>::THREADS, Product<EXTENT>::BLOCKS)                    \
        NAME(const float* input, const float* weight, const float* bias, const float* residual, float* pre_activation, \
             float* output, unsigned rows, unsigned outputs, unsigned depth, unsigned activation) {                    \
        const ForwardEpilogue epilogue(bias, residual, pre_activation, output, outputs, activation);                   \
        forward<EXTENT>(input, weight, epilogue, rows, depth);                                                         \
    }

// dx = dz · W, or with an activation the gradient of the layer before it: (dz · W) ⊙ activation'(z).
//
// grad: (rows, depth) f32, dz; weight: (depth, columns) f32; z: (rows, columns) f32, for SwiGLU (rows, 2 * columns),
// not read for the identity; target: (rows, columns) f32, for SwiGLU (rows, 2 * columns); with more than one part it is
// (parts, rows, columns), the activation is the identity and nothing is accumulated.
// Launch: (ceil(rows / EXTENT), ceil(columns / EXTENT), parts) blocks, as large as those of the forward pass. A part
// has depth_per_part depths, a multiple of 16.
// Shared memory, traffic: as the forward pass; the target is read too if it is added to.
#define GRAD_INPUT(NAME, EXTENT)                                                                                       \
    extern "C" __global__ void __launch_bounds__(Product<EXTENT>::THREADS, Product<EXTENT>::BLOCKS)                    \
        NAME(const float* grad, const float* weight, const float* z, float* target, unsigned rows, unsigned columns,   \
             unsigned depth, unsigned depth_per_part, unsigned activation, unsigned accumulate) {                      \
        const GradientEpilogue epilogue(z, target, columns, activation, accumulate);                                   \
        gradient<EXTENT, DepthLast<EXTENT, Product<EXTENT>::THREADS>>(grad, depth, weight, epilogue, rows, depth,      \
                                                                      depth_per_part);                                 \
    }

// dW = dzᵀ · x
//
// grad: (depth, rows) f32, dz; input: (depth, columns) f32, x; target: (rows, columns) f32, or (parts, rows, columns).
// Launch, shared memory, traffic: as the input gradient.
#define GRAD_WEIGHT(NAME, EXTENT)                                                                                      \
    extern "C" __global__ void __launch_bounds__(Product<EXTENT>::THREADS, Product<EXTENT>::BLOCKS)                    \
        NAME(const float* grad, const float* input, float* target, unsigned rows, unsigned columns, unsigned depth,    \
             unsigned depth_per_part, unsigned accumulate) {                                                           \
        const GradientEpilogue epilogue(nullptr, target, columns, IDENTITY, accumulate);                               \
        gradient<EXTENT, DepthFirst<EXTENT, Product<EXTENT>::THREADS>>(grad, rows, input, epilogue, rows, depth,       \
                                                                       depth_per_part);                                \
    }

FORWARD(linear_forward_large, 128)
FORWARD(linear_forward_small, 64)
GRAD_INPUT(linear_grad_input_large, 128)
GRAD_INPUT(linear_grad_input_small, 64)
GRAD_WEIGHT(linear_grad_weight_large, 128)
GRAD_WEIGHT(linear_grad_weight_small, 64)

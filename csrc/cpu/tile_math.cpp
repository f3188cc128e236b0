#include "cpu/tile_math.h"

#include <cmath>
#include <cstring>
#include <limits>

#include "cpu/float16.h"

// The library is built for any x86-64. GCC compiles these loops for newer chips too, and the loader picks one. (Not under
// sanitizers: their runtime is not ready yet when the loader picks.)
#if defined(__x86_64__) && defined(__gnu_linux__) && defined(__GNUC__) && !defined(__clang__) && \
    !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
#if __GNUC__ >= 12
#define VARATTN_CLONES __attribute__((target_clones("default", "arch=x86-64-v3", "arch=x86-64-v4")))
#else
#define VARATTN_CLONES __attribute__((target_clones("default", "avx2", "avx512f")))
#endif
#else
#define VARATTN_CLONES
#endif
#define VARATTN_INLINE inline __attribute__((always_inline))

namespace varattn::cpu {
namespace {

constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();
constexpr float kLog2E = 1.4426950408889634f;

// GCC and Clang lower these to whatever registers the target has.
typedef float Floats __attribute__((vector_size(kLanes * 4)));
typedef int32_t Ints __attribute__((vector_size(kLanes * 4)));

VARATTN_INLINE void load(Floats& x, const float* from) { std::memcpy(&x, from, sizeof x); }
VARATTN_INLINE void store(float* to, const Floats& x) { std::memcpy(to, &x, sizeof x); }

// 2^x for x <= 0, to about one unit in the last place: 2^n by exponent bits, 2^f on [-0.5, 0.5] by a polynomial.
VARATTN_INLINE void exp2_nonpositive(Floats& x) {
    const Floats magic = Floats{} + 0x1.8p23f;  // rounds to an integer, which the low bits then hold
    const Floats shifted = x + magic;
    const Floats f = x - (shifted - magic);
    Floats p = f * 1.535336188e-4f + 1.339887440e-3f;
    p = p * f + 9.618437357e-3f;
    p = p * f + 5.550332548e-2f;
    p = p * f + 2.402264791e-1f;
    p = p * f + 6.931472028e-1f;
    p = p * f + 1.0f;
    Ints shifted_bits, magic_bits;
    std::memcpy(&shifted_bits, &shifted, sizeof shifted_bits);
    std::memcpy(&magic_bits, &magic, sizeof magic_bits);
    // As unsigned: of lanes below -126, whose result is dropped, the sum may wrap.
    typedef uint32_t Words __attribute__((vector_size(kLanes * 4)));
    const Words exponent = ((Words)shifted_bits - (Words)magic_bits + 127u) << 23;
    Floats power;
    std::memcpy(&power, &exponent, sizeof power);
    x = x < -126.0f ? Floats{} : p * power;
}

template <class T>
VARATTN_INLINE void load_as(const void* from, int count, float* to) {
    const T* source = static_cast<const T*>(from);
    for (int i = 0; i < count; ++i)
        to[i] = to_float(source[i]);
}

template <class T>
VARATTN_INLINE void store_as(const float* from, float scale, int count, void* to) {
    T* target = static_cast<T*>(to);
    for (int i = 0; i < count; ++i)
        target[i] = from_float<T>(from[i] * scale);
}

}  // namespace

VARATTN_CLONES
void multiply(const float* a, int64_t a_stride, const float* b, int64_t b_stride, float* c, int64_t c_stride,
              const float* c_scale, int rows, int depth, int cols) {
    for (int r = 0; r < rows; r += kRowStep) {
        for (int col = 0; col < cols; col += kLanes) {
            Floats sum[kRowStep] = {};
            for (int d = 0; d < depth; ++d) {
                Floats b_row;
                load(b_row, b + d * b_stride + col);
                for (int i = 0; i < kRowStep; ++i)
                    sum[i] += a[(r + i) * a_stride + d] * b_row;
            }
            for (int i = 0; i < kRowStep; ++i) {
                float* target = c + (r + i) * c_stride + col;
                if (c_scale) {
                    Floats before;
                    load(before, target);
                    sum[i] += before * c_scale[r + i];
                }
                store(target, sum[i]);
            }
        }
    }
}

VARATTN_CLONES
float softmax_block(float* logits, int begin, int end, SoftmaxRow& row) {
    for (int j = 0; j < begin; ++j)
        logits[j] = kMinusInfinity;
    for (int j = end; j < kBlockKeys; ++j)
        logits[j] = kMinusInfinity;

    constexpr int kVectors = kBlockKeys / kLanes;
    Floats x[kVectors];
    for (int i = 0; i < kVectors; ++i)
        load(x[i], logits + i * kLanes);
    Floats largest = x[0];
    for (int i = 1; i < kVectors; ++i)
        largest = x[i] > largest ? x[i] : largest;
    float max = row.max;
    for (int lane = 0; lane < kLanes; ++lane)
        max = largest[lane] > max ? largest[lane] : max;
    // Nothing visible so far, or nothing but NaN, which has to stay: nothing to subtract.
    const float base = max == kMinusInfinity ? 0.0f : max;
    Floats sums{};
    for (int i = 0; i < kVectors; ++i) {
        x[i] -= base;
        exp2_nonpositive(x[i]);
        sums += x[i];
        store(logits + i * kLanes, x[i]);
    }
    float sum = 0;
    for (int lane = 0; lane < kLanes; ++lane)
        sum += sums[lane];
    const float rescale = std::exp2(row.max - base);
    row.sum = row.sum * rescale + sum;
    row.max = max;
    return rescale;
}

VARATTN_CLONES
void scale_scores(float* scores, int64_t count, float scale, float softcap) {
    if (softcap > 0) {
        for (int64_t i = 0; i < count; ++i)
            scores[i] = softcap * kLog2E * std::tanh(scores[i] * (scale / softcap));
    } else {
        for (int64_t i = 0; i < count; ++i)
            scores[i] *= scale * kLog2E;
    }
}

VARATTN_CLONES
void load_row(const void* from, DType dtype, int count, float* to) {
    switch (dtype) {
        case DType::kFloat32: return load_as<float>(from, count, to);
        case DType::kFloat16: return load_as<Half>(from, count, to);
        case DType::kBFloat16: return load_as<BFloat16>(from, count, to);
    }
}

VARATTN_CLONES
void store_row(const float* from, float scale, int count, DType dtype, void* to) {
    switch (dtype) {
        case DType::kFloat32: return store_as<float>(from, scale, count, to);
        case DType::kFloat16: return store_as<Half>(from, scale, count, to);
        case DType::kBFloat16: return store_as<BFloat16>(from, scale, count, to);
    }
}

VARATTN_CLONES
void transpose_block(const float* from, int64_t from_stride, int depth, float* to) {
    for (int key = 0; key < kBlockKeys; key += kLanes)
        for (int d = 0; d < depth; ++d)
            for (int j = 0; j < kLanes; ++j)
                to[d * kBlockKeys + key + j] = from[(key + j) * from_stride + d];
}

}  // namespace varattn::cpu

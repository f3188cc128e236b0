// The inner loops of CPU attention, on float tiles. Each row's result depends on that row alone, whatever else is in the
// tile: rows are padded to kRowStep rather than finished by another loop that might round differently.
#pragma once

#include <cstdint>

#include "varattn/types.h"

namespace varattn::cpu {

inline constexpr int kLanes = 16;   // column counts are padded to this
inline constexpr int kRowStep = 4;  // row counts are padded to this
inline constexpr int kBlockKeys = 64;

// c[r][:] = c[r][:] * c_scale[r] + a[r][:] * b (c_scale null: 0). a (rows, depth), b (depth, cols), c (rows, cols).
void multiply(const float* a, int64_t a_stride, const float* b, int64_t b_stride, float* c, int64_t c_stride,
              const float* c_scale, int rows, int depth, int cols);

struct SoftmaxRow {
    float max;  // of the logits so far, base 2
    float sum;  // of 2^(logit - max)
};

// One KV block of one row: logits (base 2, kBlockKeys of them) become probabilities relative to the row's new maximum.
// Keys outside [begin, end) are masked. Returns what the row's output so far is to be multiplied by.
float softmax_block(float* logits, int begin, int end, SoftmaxRow& row);

// logits = scores * scale, or softcap * tanh(scores * scale / softcap): in base 2.
void scale_scores(float* scores, int64_t count, float scale, float softcap);

// One row of q, k or v, and back.
void load_row(const void* from, DType dtype, int count, float* to);
void store_row(const float* from, float scale, int count, DType dtype, void* to);

// to[d][key] = from[key][d] for kBlockKeys keys.
void transpose_block(const float* from, int64_t from_stride, int depth, float* to);

}  // namespace varattn::cpu

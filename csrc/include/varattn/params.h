// The arguments of one attention call, as a POD. Strides are in elements; the last dimension is contiguous.
#pragma once

#include <cstdint>

#include "varattn/plan.h"

namespace varattn {

struct AttentionParams {
    PlanConfig config;  // what the caller says the plan was made for

    const void* q;               // (total_q, num_heads_q, head_dim)
    const void* k;               // packed: (total_k, num_heads_kv, head_dim); paged: (num_pages, page_size, ...)
    const void* v;               // packed: (total_k, num_heads_kv, head_dim_v); paged: (num_pages, page_size, ...)
    void* out;                   // (total_q, num_heads_q, head_dim_v)
    float* lse;                  // (num_heads_q, total_q) natural log, or null
    const int32_t* block_table;  // (num_seqs, max_pages_per_seq), or null: packed
    const float* sinks;          // (num_heads_q): a logit per head that adds to the denominator, or null

    int64_t q_row_stride, q_head_stride;
    int64_t k_page_stride, k_row_stride, k_head_stride;  // page stride unused when packed
    int64_t v_page_stride, v_row_stride, v_head_stride;
    int64_t out_row_stride, out_head_stride;
    int64_t lse_head_stride;
    int64_t block_table_stride;

    int32_t total_q;
    int32_t total_k;                                  // packed: rows of k and v; paged: 0
    int32_t num_pages, page_size, max_pages_per_seq;  // packed: 0

    float softmax_scale;
    float softcap;          // 0: none; else scores become softcap * tanh(score / softcap)
    int32_t leave_padding;  // 1: rows of q that belong to no sequence are not written

    void* plan;       // plan_size(config) bytes; only its status is written
    void* workspace;  // workspace_size(config) bytes, zeroed once; restored by every call

    void* trace;             // TraceHeader, TraceRecord[trace_capacity] (trace.h), or null: no trace
    int64_t trace_capacity;  // records
};

}  // namespace varattn

/* varattn's C API: what varattn.hpp offers, in C. See there, in plan.h and in params.h for what the fields mean.
 *
 * Functions return VARATTN_OK or an error code; varattn_last_error() then says what was wrong. Nothing throws. */
#ifndef VARATTN_VARATTN_H
#define VARATTN_VARATTN_H

#include <stddef.h>
#include <stdint.h>

#if defined(VARATTN_SHARED) && defined(__GNUC__)
#define VARATTN_C_API __attribute__((visibility("default")))
#else
#define VARATTN_C_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

struct CUstream_st; /* cudaStream_t is a pointer to it */

typedef enum varattn_error_code {
    VARATTN_OK = 0,
    VARATTN_INVALID_ARGUMENT = 1,
    VARATTN_UNSUPPORTED = 2,   /* valid, but no kernel serves it on this device */
    VARATTN_PLAN_MISMATCH = 3, /* the plan was made for something else */
    VARATTN_CUDA_ERROR = 4,
    VARATTN_INTERNAL = 5
} varattn_error_code;

typedef enum varattn_dtype { VARATTN_FLOAT32 = 0, VARATTN_FLOAT16 = 1, VARATTN_BFLOAT16 = 2 } varattn_dtype;
typedef enum varattn_device_type { VARATTN_CPU = 0, VARATTN_CUDA_DEVICE = 1 } varattn_device_type;

typedef struct varattn_device {
    int32_t type;
    int32_t compute_capability; /* major * 10 + minor */
    int32_t num_sms;
} varattn_device;

typedef struct varattn_plan_options {
    int32_t num_heads_q;
    int32_t num_heads_kv;
    int32_t head_dim;
    int32_t head_dim_v; /* 0: head_dim */
    int32_t dtype;
    int32_t causal;       /* 0 or 1 */
    int32_t window_left;  /* -1: unbounded */
    int32_t window_right; /* -1: unbounded */
    int32_t num_splits;   /* upper bound on splits of a tile; 1: never split; 0: the default, 1 if batch_invariant */
    int32_t batch_invariant;
    int32_t sm_margin;
    int32_t max_seqs;
    int32_t max_total_q;
} varattn_plan_options;

typedef struct varattn_plan_config {
    int32_t kernel, dtype, num_heads_q, num_heads_kv, head_dim, head_dim_v;
    int32_t tile_rows, tile_rows_decode, block_n;
    int32_t window_left, window_right, num_splits, batch_invariant, num_ctas, max_seqs, max_total_q;
} varattn_plan_config;

typedef struct varattn_lengths {
    const int32_t* cu_seqlens_q; /* (num_seqs + 1) */
    const int32_t* seqused_k;    /* (num_seqs) or null */
    const int32_t* cu_seqlens_k; /* (num_seqs + 1) or null */
} varattn_lengths;

typedef struct varattn_attention_params {
    varattn_plan_config config;
    const void* q;              /* (total_q, num_heads_q, head_dim) */
    const void* k;              /* (total_k, num_heads_kv, head_dim) or (num_pages, page_size, ...) */
    const void* v;              /* (total_k, num_heads_kv, head_dim_v) or (num_pages, page_size, ...) */
    void* out;                  /* (total_q, num_heads_q, head_dim_v) */
    float* lse;                 /* (num_heads_q, total_q) or null */
    const int32_t* block_table; /* (num_seqs, max_pages_per_seq), or null: packed */
    const float* sinks;         /* (num_heads_q) or null */
    int64_t q_row_stride, q_head_stride;
    int64_t k_page_stride, k_row_stride, k_head_stride;
    int64_t v_page_stride, v_row_stride, v_head_stride;
    int64_t out_row_stride, out_head_stride;
    int64_t lse_head_stride;
    int64_t block_table_stride;
    int32_t total_q;
    int32_t total_k;
    int32_t num_pages, page_size, max_pages_per_seq;
    float softmax_scale;
    float softcap;
    int32_t leave_padding;
    void* plan;
    void* workspace;
    void* trace; /* trace.h; null: no trace */
    int64_t trace_capacity;
} varattn_attention_params;

/* Of the last call that failed on this thread; "" before the first. Valid until the next one. */
VARATTN_C_API const char* varattn_last_error(void);
VARATTN_C_API const char* varattn_version(void);

VARATTN_C_API varattn_device varattn_cpu_device(void);
VARATTN_C_API varattn_error_code varattn_cuda_device(int32_t device_index, varattn_device* device);

/* Options with no heads, no dims and no capacity yet: bfloat16, no mask, the default num_splits. */
VARATTN_C_API varattn_plan_options varattn_default_options(void);
VARATTN_C_API varattn_error_code varattn_make_plan_config(const varattn_device* device,
                                                          const varattn_plan_options* options,
                                                          varattn_plan_config* config);
VARATTN_C_API varattn_error_code varattn_plan_size(const varattn_plan_config* config, int64_t* bytes);
VARATTN_C_API varattn_error_code varattn_workspace_size(const varattn_plan_config* config, int64_t* bytes);
VARATTN_C_API varattn_error_code varattn_check_plan_config(const varattn_plan_config* plan,
                                                           const varattn_plan_config* call);

/* Planners. CPU: host pointers. CUDA: device pointers, asynchronous on the stream. */
VARATTN_C_API varattn_error_code varattn_make_plan_cpu(const varattn_plan_config* config,
                                                       const varattn_lengths* lengths, void* plan);
VARATTN_C_API varattn_error_code varattn_make_plan_cuda(const varattn_plan_config* config,
                                                        const varattn_lengths* lengths, void* plan,
                                                        struct CUstream_st* stream);

/* Attention. num_threads 0: all cores. The CUDA call is one launch on the stream. */
VARATTN_C_API varattn_error_code varattn_mha_varlen_cpu(const varattn_attention_params* params, int32_t num_threads);
VARATTN_C_API varattn_error_code varattn_mha_varlen_cuda(const varattn_attention_params* params,
                                                         struct CUstream_st* stream);

/* What went wrong on the device is in a status word of the plan (on the plan's device), at this offset in bytes. */
#define VARATTN_PLAN_STATUS_OFFSET 4
/* Writes what a status word says, cut to `capacity` bytes with the final 0. Returns the length of the whole text. */
VARATTN_C_API size_t varattn_describe_status(uint32_t status, char* text, size_t capacity);

#ifdef __cplusplus
}
#endif

#endif

// mha_varlen: check every argument, fill AttentionParams, launch.
#include "torch/attention.h"

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/ops.h>

#include <cmath>

#include "torch/device.h"
#include "torch/options.h"

namespace varattn::binding {
namespace {

constexpr const char* kName = "mha_varlen";

Arg arg(const char* name, const Tensor& tensor) { return {kName, name, tensor}; }

int32_t size_of(const Tensor& t, int64_t dim) { return static_cast<int32_t>(t.size(dim)); }

void check_heads_tensor(const Arg& a, const Tensor& q, int64_t rank, const char* layout) {
    check_rank(a, rank, layout);
    check_device(a, q, "q");
    check_dtype(a, q.scalar_type(), ", the dtype of q");
    check_fits_int32(a);
    check_last_dim_contiguous(a);
    check_aligned(a);
}

// Shapes of q, k and v. Where K and V lie is said by block_table.
Heads check_qkv(const AttentionTensors& t) {
    bool paged = t.block_table.has_value();
    if (!t.q.is_cpu() && !t.q.is_cuda()) refuse(arg("q", t.q), "a tensor on " + device_of(t.q), "one on cpu or cuda");
    check_rank(arg("q", t.q), 3, "(total_q, num_heads_q, head_dim)");
    to_dtype(kName, "q", t.q.scalar_type());
    check_heads_tensor(arg("q", t.q), t.q, 3, "");
    int64_t rank = paged ? 4 : 3;
    check_heads_tensor(arg("k", t.k), t.q, rank,
                       paged ? "(num_pages, page_size, num_heads_kv, head_dim) with block_table"
                             : "(total_k, num_heads_kv, head_dim) without block_table");
    check_heads_tensor(arg("v", t.v), t.q, rank,
                       paged ? "(num_pages, page_size, num_heads_kv, head_dim_v) with block_table"
                             : "(total_k, num_heads_kv, head_dim_v) without block_table");
    Heads heads{t.q.size(1), t.k.size(rank - 2), t.q.size(2), t.v.size(rank - 1), t.q.scalar_type()};
    if (paged) {
        check_shape(arg("k", t.k), {-1, -1, -1, heads.head_dim}, "(num_pages, page_size, num_heads_kv, head_dim)");
        check_shape(arg("v", t.v), {t.k.size(0), t.k.size(1), heads.num_heads_kv, -1},
                    "(num_pages, page_size, num_heads_kv, head_dim_v)");
        if (t.k.size(1) == 0) refuse(arg("k", t.k), shape_of(t.k), "a page_size of at least 1");
    } else {
        check_shape(arg("k", t.k), {-1, -1, heads.head_dim}, "(total_k, num_heads_kv, head_dim)");
        check_shape(arg("v", t.v), {t.k.size(0), heads.num_heads_kv, -1}, "(total_k, num_heads_kv, head_dim_v)");
    }
    return heads;
}

// Returns the number of sequences.
int64_t check_index_tensors(const AttentionTensors& t) {
    check_rank(arg("cu_seqlens_q", t.cu_seqlens_q), 1, "(num_seqs + 1,)");
    if (t.cu_seqlens_q.size(0) == 0) refuse(arg("cu_seqlens_q", t.cu_seqlens_q), "shape (0,)", "(num_seqs + 1,)");
    check_index_vector(arg("cu_seqlens_q", t.cu_seqlens_q), t.q, "q", -1, "(num_seqs + 1,)");
    int64_t num_seqs = t.cu_seqlens_q.size(0) - 1;
    if (t.block_table) {
        if (t.cu_seqlens_k)
            refuse(kName, "cu_seqlens_k", "a tensor", "None with block_table: lengths are in seqused_k");
        if (!t.seqused_k) refuse(kName, "seqused_k", "None", "the lengths (num_seqs,) with block_table");
        Arg a = arg("block_table", *t.block_table);
        check_device(a, t.q, "q");
        check_dtype(a, ScalarType::Int, "");
        check_shape(a, {num_seqs, -1}, "(num_seqs, max_pages)");
        check_fits_int32(a);
        check_last_dim_contiguous(a);
    } else if (!t.cu_seqlens_k) {
        refuse(kName, "cu_seqlens_k", "None",
               "the offsets (num_seqs + 1,) of packed k and v, or else give block_table");
    }
    if (t.cu_seqlens_k)
        check_index_vector(arg("cu_seqlens_k", *t.cu_seqlens_k), t.q, "q", num_seqs + 1, "(num_seqs + 1,)");
    if (t.seqused_k) check_index_vector(arg("seqused_k", *t.seqused_k), t.q, "q", num_seqs, "(num_seqs,)");
    return num_seqs;
}

void check_sinks(const Arg& a, const Tensor& q) {
    check_device(a, q, "q");
    if (a.tensor.scalar_type() != ScalarType::BFloat16) check_dtype(a, ScalarType::Float, " or bfloat16");
    check_shape(a, {q.size(1)}, "(num_heads_q,)");
    check_last_dim_contiguous(a);
}

}  // namespace

AttentionCall::AttentionCall(const AttentionTensors& tensors, const AttentionScalars& s) : t(tensors) {
    Heads heads = check_qkv(t);
    int64_t num_seqs = check_index_tensors(t);
    Capacity capacity{num_seqs, s.max_total_q.value_or(t.q.size(0))};
    if (capacity.max_total_q < t.q.size(0))
        refuse(arg("q", t.q), shape_of(t.q),
               "at most the plan's max_total_q = " + std::to_string(capacity.max_total_q) + " rows");
    const Device device = device_at(t.q.is_cuda(), t.q.get_device_index());
    p.config = make_config(kName, device, capacity, heads, {s.causal, s.window_size},
                           {s.num_splits, s.batch_invariant, s.sm_margin});
    if (t.sinks) check_sinks(arg("sinks", *t.sinks), t.q);
    // That the plan was made for this config is found out where it can be read: by the kernel.
    if (t.plan) check_buffer(arg("plan", *t.plan), t.q, "q", plan_size(p.config), "plan_size()");
    if (t.workspace)
        check_buffer(arg("workspace", *t.workspace), t.q, "q", workspace_size(p.config), "workspace_size()");

    if (t.trace) set_trace();

    double scale = s.softmax_scale.value_or(1.0 / std::sqrt(static_cast<double>(heads.head_dim)));
    p.softmax_scale = to_positive_float(kName, "softmax_scale", scale, false);
    p.softcap = to_positive_float(kName, "softcap", s.softcap, true);
    p.leave_padding = s.leave_padding;

    p.q = address_of(t.q);
    p.k = address_of(t.k);
    p.v = address_of(t.v);
    p.q_row_stride = stride_of(t.q, 0);
    p.q_head_stride = stride_of(t.q, 1);
    int64_t rows_dim = t.block_table ? 1 : 0;
    p.k_row_stride = stride_of(t.k, rows_dim);
    p.k_head_stride = stride_of(t.k, rows_dim + 1);
    p.v_row_stride = stride_of(t.v, rows_dim);
    p.v_head_stride = stride_of(t.v, rows_dim + 1);
    p.total_q = size_of(t.q, 0);
    if (t.block_table) {
        p.k_page_stride = stride_of(t.k, 0);
        p.v_page_stride = stride_of(t.v, 0);
        p.num_pages = size_of(t.k, 0);
        p.page_size = size_of(t.k, 1);
        p.max_pages_per_seq = size_of(*t.block_table, 1);
        p.block_table_stride = stride_of(*t.block_table, 0);
        // Never null: null would say that K and V are packed.
        p.block_table = static_cast<const int32_t*>(t.block_table->data_ptr());
        if (!p.block_table) p.block_table = static_cast<const int32_t*>(t.cu_seqlens_q.data_ptr());
    } else {
        p.total_k = size_of(t.k, 0);
    }
}

void AttentionCall::set_trace() {
    constexpr int64_t kHeader = sizeof(TraceHeader) / 8, kRecord = sizeof(TraceRecord) / 8;
    Arg a = arg("trace", *t.trace);
    check_device(a, t.q, "q");
    check_dtype(a, ScalarType::Long, "");
    check_rank(a, 1, "(4 + 4 * records,)");
    check_last_dim_contiguous(a);
    if (a.tensor.numel() < kHeader) refuse(a, shape_of(a.tensor), "(4 + 4 * records,)");
    p.trace = a.tensor.data_ptr();
    p.trace_capacity = (a.tensor.numel() - kHeader) / kRecord;
}

std::vector<int64_t> AttentionCall::out_shape() const { return {t.q.size(0), t.q.size(1), p.config.head_dim_v}; }
std::vector<int64_t> AttentionCall::lse_shape() const { return {t.q.size(1), t.q.size(0)}; }

void AttentionCall::set_outputs(const Tensor& out, const std::optional<Tensor>& lse) {
    Arg a = arg("out", out);
    check_heads_tensor(a, t.q, 3, "(total_q, num_heads_q, head_dim_v)");
    check_shape(a, {p.total_q, p.config.num_heads_q, p.config.head_dim_v}, "(total_q, num_heads_q, head_dim_v)");
    check_no_overlap(a);
    p.out = address_of(out);
    p.out_row_stride = stride_of(out, 0);
    p.out_head_stride = stride_of(out, 1);
    if (!lse) return;
    Arg b = arg("lse", *lse);
    check_device(b, t.q, "q");
    check_dtype(b, ScalarType::Float, "");
    check_shape(b, {p.config.num_heads_q, p.total_q}, "(num_heads_q, total_q)");
    check_last_dim_contiguous(b);
    check_no_overlap(b);
    p.lse = static_cast<float*>(address_of(*lse));
    p.lse_head_stride = stride_of(*lse, 0);
}

void AttentionCall::run() {
    if (p.total_q == 0) return;
    const int64_t plan_bytes = plan_size(p.config), workspace_bytes = workspace_size(p.config);
    Tensor plan = t.plan ? *t.plan : torch::stable::new_empty(t.q, {&plan_bytes, 1}, ScalarType::Byte);
    Tensor workspace =
        t.workspace ? *t.workspace : torch::stable::new_zeros(t.q, {&workspace_bytes, 1}, ScalarType::Byte);
    if (!t.plan) make_plan(p.config, {t.cu_seqlens_q, t.seqused_k, t.cu_seqlens_k}, plan);
    std::optional<Tensor> sinks = t.sinks;
    if (sinks && sinks->scalar_type() != ScalarType::Float) sinks = torch::stable::to(*sinks, ScalarType::Float);
    p.plan = plan.data_ptr();
    p.workspace = workspace.data_ptr();
    p.sinks = sinks ? static_cast<const float*>(sinks->data_ptr()) : nullptr;
    if (t.q.is_cuda())
        mha_varlen_cuda(p, current_stream(t.q.get_device_index()));
    else
        mha_varlen_cpu(p, static_cast<int32_t>(torch::stable::get_num_threads()));
}

}  // namespace varattn::binding

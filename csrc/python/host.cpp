// varattn._host: the host planner, the kernel table and the plan's structs for Python. No tensors, no PyTorch.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstddef>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "core/check.h"
#include "core/costs.h"
#include "core/host_planner.h"
#include "core/kernel_table.h"
#include "varattn/varattn.hpp"

namespace py = pybind11;

namespace varattn {
namespace {

DType dtype_from(const std::string& name) {
    for (DType dtype : {DType::kFloat32, DType::kFloat16, DType::kBFloat16})
        if (name == dtype_name(dtype)) return dtype;
    fail(ErrorCode::kInvalidArgument, "plan", "dtype", name, "float32, float16 or bfloat16");
}

py::bytes plan(const std::vector<int32_t>& cu_seqlens_q, const std::optional<std::vector<int32_t>>& seqused_k,
               const std::optional<std::vector<int32_t>>& cu_seqlens_k, int32_t max_total_q, int32_t num_heads_q,
               int32_t num_heads_kv, int32_t head_dim, int32_t head_dim_v, const std::string& dtype, bool causal,
               std::pair<int32_t, int32_t> window_size, int32_t num_splits, bool batch_invariant, int32_t sm_margin,
               int32_t compute_capability, int32_t num_sms, const std::string& device_name) {
    auto require_size = [](const char* name, size_t got, size_t wanted) {
        if (got != wanted)
            fail(ErrorCode::kInvalidArgument, "plan", name, std::to_string(got) + " numbers", std::to_string(wanted));
    };
    if (cu_seqlens_q.empty()) fail(ErrorCode::kInvalidArgument, "plan", "cu_seqlens_q", "[]", "num_seqs + 1 offsets");
    const size_t num_seqs = cu_seqlens_q.size() - 1;
    if (!seqused_k && !cu_seqlens_k)
        fail(ErrorCode::kInvalidArgument, "plan", "seqused_k", "None", "key lengths, or else give cu_seqlens_k");
    if (seqused_k) require_size("seqused_k", seqused_k->size(), num_seqs);
    if (cu_seqlens_k) require_size("cu_seqlens_k", cu_seqlens_k->size(), num_seqs + 1);

    PlanOptions o;
    o.num_heads_q = num_heads_q;
    o.num_heads_kv = num_heads_kv;
    o.head_dim = head_dim;
    o.head_dim_v = head_dim_v;
    o.dtype = dtype_from(dtype);
    o.causal = causal;
    o.window_left = window_size.first;
    o.window_right = window_size.second;
    o.num_splits = num_splits;
    o.batch_invariant = batch_invariant;
    o.sm_margin = sm_margin;
    o.max_seqs = static_cast<int32_t>(num_seqs);
    o.max_total_q = max_total_q;
    const Device device =
        compute_capability < 0 ? cpu_device() : Device{DeviceType::kCuda, compute_capability, num_sms};
    const PlanConfig config = make_plan_config(device, o, "plan");
    const SequenceLengths lengths{cu_seqlens_q.data(), seqused_k ? seqused_k->data() : nullptr,
                                  cu_seqlens_k ? cu_seqlens_k->data() : nullptr};
    std::string buffer(static_cast<size_t>(plan_size(config)), '\0');
    plan_on_host(config, cost_model(checked_kernel(config, "plan").id, device_name), lengths, buffer.data());
    return py::bytes(buffer);
}

py::list kernels() {
    py::list rows;
    for (const KernelConfig& k : kKernelTable) {
        py::dict row;
        row["id"] = static_cast<int>(k.id);
        row["name"] = k.name;
        row["device"] = k.device == DeviceType::kCpu ? "cpu" : "cuda";
        row["min_compute_capability"] = k.min_compute_capability;
        row["max_compute_capability"] = k.max_compute_capability;
        row["takes_float32"] = k.takes_float32;
        row["takes_16bit"] = k.takes_16bit;
        row["max_head_dim"] = k.max_head_dim;
        row["tile_rows"] = k.tile_rows;
        row["tile_rows_decode"] = k.tile_rows_decode;
        row["block_n"] = k.block_n;
        row["ctas_per_sm"] = k.ctas_per_sm;
        rows.append(row);
    }
    return rows;
}

// {struct: {field: (offset, bytes)}}, with "" for the struct itself.
py::dict struct_layouts() {
    py::dict header, config, item;
    auto add = [](py::dict& to, const char* name, size_t offset, size_t size) {
        to[name] = py::make_tuple(offset, size);
    };
#define VARATTN_FIELD(dict, type, field) add(dict, #field, offsetof(type, field), sizeof(type::field))
    add(header, "", 0, sizeof(PlanHeader));
    VARATTN_FIELD(header, PlanHeader, magic);
    VARATTN_FIELD(header, PlanHeader, status);
    VARATTN_FIELD(header, PlanHeader, config);
    VARATTN_FIELD(header, PlanHeader, num_items);
    VARATTN_FIELD(header, PlanHeader, num_front_items);
    VARATTN_FIELD(header, PlanHeader, num_front_ctas);
    VARATTN_FIELD(header, PlanHeader, num_split_tiles);
    VARATTN_FIELD(header, PlanHeader, num_partial_rows);
    VARATTN_FIELD(header, PlanHeader, q_begin);
    VARATTN_FIELD(header, PlanHeader, q_end);
    VARATTN_FIELD(header, PlanHeader, section_heads);
    VARATTN_FIELD(header, PlanHeader, reserved);
    add(config, "", 0, sizeof(PlanConfig));
    VARATTN_FIELD(config, PlanConfig, kernel);
    VARATTN_FIELD(config, PlanConfig, dtype);
    VARATTN_FIELD(config, PlanConfig, num_heads_q);
    VARATTN_FIELD(config, PlanConfig, num_heads_kv);
    VARATTN_FIELD(config, PlanConfig, head_dim);
    VARATTN_FIELD(config, PlanConfig, head_dim_v);
    VARATTN_FIELD(config, PlanConfig, tile_rows);
    VARATTN_FIELD(config, PlanConfig, tile_rows_decode);
    VARATTN_FIELD(config, PlanConfig, block_n);
    VARATTN_FIELD(config, PlanConfig, window_left);
    VARATTN_FIELD(config, PlanConfig, window_right);
    VARATTN_FIELD(config, PlanConfig, num_splits);
    VARATTN_FIELD(config, PlanConfig, batch_invariant);
    VARATTN_FIELD(config, PlanConfig, num_ctas);
    VARATTN_FIELD(config, PlanConfig, max_seqs);
    VARATTN_FIELD(config, PlanConfig, max_total_q);
    add(item, "", 0, sizeof(WorkItem));
    VARATTN_FIELD(item, WorkItem, seq);
    VARATTN_FIELD(item, WorkItem, q_begin);
    VARATTN_FIELD(item, WorkItem, q_len);
    VARATTN_FIELD(item, WorkItem, k_begin);
    VARATTN_FIELD(item, WorkItem, kv_len);
    VARATTN_FIELD(item, WorkItem, row_begin);
    VARATTN_FIELD(item, WorkItem, row_end);
    VARATTN_FIELD(item, WorkItem, block_begin);
    VARATTN_FIELD(item, WorkItem, block_end);
    VARATTN_FIELD(item, WorkItem, split);
    VARATTN_FIELD(item, WorkItem, num_splits);
    VARATTN_FIELD(item, WorkItem, split_tile);
    VARATTN_FIELD(item, WorkItem, partial_row);
    VARATTN_FIELD(item, WorkItem, flags);
    VARATTN_FIELD(item, WorkItem, tile);
    VARATTN_FIELD(item, WorkItem, cost);
#undef VARATTN_FIELD
    py::dict all;
    all["PlanHeader"] = header;
    all["PlanConfig"] = config;
    all["WorkItem"] = item;
    all["magic"] = kPlanMagic;
    return all;
}

}  // namespace
}  // namespace varattn

PYBIND11_MODULE(_host, m) {
    using namespace varattn;
    using namespace pybind11::literals;
    py::register_exception_translator([](std::exception_ptr error) {
        try {
            if (error) std::rethrow_exception(error);
        } catch (const Error& e) {
            PyErr_SetString(PyExc_ValueError, e.what());
        }
    });
    m.def("plan", &plan, "cu_seqlens_q"_a, py::kw_only(), "seqused_k"_a, "cu_seqlens_k"_a, "max_total_q"_a,
          "num_heads_q"_a, "num_heads_kv"_a, "head_dim"_a, "head_dim_v"_a, "dtype"_a, "causal"_a, "window_size"_a,
          "num_splits"_a, "batch_invariant"_a, "sm_margin"_a, "compute_capability"_a, "num_sms"_a, "device_name"_a);
    m.def("kernels", &kernels);
    m.def("describe_status", &describe_status);
    m.def("struct_layouts", &struct_layouts);
}

#include "sm90/launch_params.h"

#include <algorithm>
#include <sstream>

#include "core/check.h"
#include "core/kernel_table.h"
#include "core/schedule.h"
#include "device/descriptor.h"

namespace varattn::sm90 {
namespace {

// A view of 16-bit elements, innermost dimension first; strides in elements, that of dimension 0 is 1.
struct View {
    const char* name;
    const void* data;
    int rank;
    cuuint64_t dims[5];
    int64_t strides[5];
    cuuint32_t box[5];
};

CUtensorMap make_map(EncodeTiled encode, const View& view, bool bf16) {
    cuuint64_t dims[5], strides_bytes[4];
    const cuuint32_t ones[5] = {1, 1, 1, 1, 1};
    for (int i = 0; i < view.rank; ++i) {
        dims[i] = view.dims[i];
        // A dimension of one element may have any stride in a tensor; the encoder wants a plausible one.
        if (i > 0) strides_bytes[i - 1] = view.dims[i] == 1 ? 16 : view.strides[i] * 2;
    }
    CUtensorMap map;
    const CUresult error =
        encode(&map, bf16 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 : CU_TENSOR_MAP_DATA_TYPE_FLOAT16, view.rank,
               const_cast<void*>(view.data), dims, strides_bytes, view.box, ones, CU_TENSOR_MAP_INTERLEAVE_NONE,
               CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_128B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    if (error == CUDA_SUCCESS) return map;
    std::ostringstream message;
    message << "mha_varlen: " << view.name << ": got a layout that the copy engine does not take (CUresult " << error
            << "): address " << view.data << ", ";
    for (int i = 0; i < view.rank; ++i)
        message << (i ? "; " : "") << "dim " << dims[i] << " stride " << (i ? strides_bytes[i - 1] : 2) << " bytes box "
                << view.box[i];
    throw Error(ErrorCode::kInvalidArgument, message.str());
}

// The largest power of two up to `limit` that divides n.
int32_t power_of_two_divisor(int32_t n, int32_t limit) { return std::min(limit, n & -n); }

// The kernel table says what the planner cuts work into; Config what the kernel expects.
template <int kDim>
constexpr bool agrees_with_table(KernelId id) {
    using C = Config<uint16_t, kDim>;
    const KernelConfig& row = kKernelTable[id];
    return row.id == id && row.max_head_dim == kDim && row.tile_rows == C::kTileRows && row.block_n == C::kBlockN &&
           row.tile_rows_decode == (C::kHasDecode ? kDecodeRows : 0) &&
           kept_row_floats(PlanConfig{.kernel = id}) == kDim + 8;
}
static_assert(agrees_with_table<64>(kKernelSm90D64) && agrees_with_table<128>(kKernelSm90D128) &&
              agrees_with_table<256>(kKernelSm90D256));

}  // namespace

LaunchParams make_launch_params(const AttentionParams& a, EncodeTiled encode) {
    const PlanConfig& c = a.config;
    const bool bf16 = c.dtype == static_cast<int32_t>(DType::kBFloat16), paged = a.block_table != nullptr;
    const int32_t group = c.num_heads_q / c.num_heads_kv;
    const auto u = [](int64_t x) { return static_cast<cuuint32_t>(x); };
    const auto n = [](int64_t x) { return static_cast<cuuint64_t>(std::max<int64_t>(x, 1)); };

    LaunchParams p{};
    p.a = a;
    p.box_rows = paged ? power_of_two_divisor(a.page_size, c.block_n) : c.block_n;
    // Whole boxes fill a stage only at the kernel's own head dim: there is no part to be zero-filled. One of a single part is
    // whole as it is. A box counts from page to page in units, so that pages have to be so many apart.
    const int32_t kernel_dim = kKernelTable[c.kernel].max_head_dim;
    const int64_t page_rows = paged ? a.page_size : a.total_k, num_pages = paged ? a.num_pages : 1;
    const auto counts_units = [&](int64_t page_stride, int64_t row_stride) {
        if (num_pages <= 1) return true;
        if (row_stride <= 0 || page_stride % (kUnitKeys * row_stride) != 0) return false;
        const int64_t units = page_stride / (kUnitKeys * row_stride);
        return units >= page_rows / kUnitKeys && num_pages * units <= INT32_MAX;
    };
    p.has_whole = kernel_dim > kPartDims && c.head_dim == kernel_dim && c.head_dim_v == kernel_dim &&
                  p.box_rows >= kUnitKeys && counts_units(a.k_page_stride, a.k_row_stride) &&
                  counts_units(a.v_page_stride, a.v_row_stride);
    p.one_box = p.has_whole && p.box_rows == c.block_n;
    p.num_copy_warps = std::min(kMaxCopyWarps, c.block_n / p.box_rows);
    p.boxes = c.block_n / p.box_rows / p.num_copy_warps;
    p.boxes_log2 = log2_floor(p.boxes);
    p.part_step = (p.has_whole ? kUnitKeys : c.block_n) * 128 / 16;
    p.unit_step = kUnitKeys * (p.has_whole ? kernel_dim / kPartDims : 1) * 128 / 16;
    p.kv_descriptor = device::swizzle128_descriptor(0, p.unit_step * 16, p.part_step * 16);
    p.page_shift = paged && (a.page_size & (a.page_size - 1)) == 0 ? log2_floor(a.page_size) : -1;
    p.workspace = workspace_layout(c);
    p.max_items = paged || a.total_k > 0 ? max_items(c) : 0;
    p.group = group;
    p.group_reciprocal = static_cast<uint32_t>(ceil_div(1 << 16, group));
    constexpr float kLog2e = 1.4426950408889634f;
    p.scale_log2 = (a.softcap > 0 ? a.softcap : a.softmax_scale) * kLog2e;
    p.score_scale = a.softcap > 0 ? a.softmax_scale / a.softcap : 0.f;

    for (int decode = 0; decode < 2; ++decode) {
        const int32_t tokens = std::max((decode ? kDecodeRows : c.tile_rows) / group, 1);
        p.q_box_rows[decode] = tokens * group;
        (decode ? p.q_decode : p.q_prefill) = make_map(encode,
                                                       {"q",
                                                        a.q,
                                                        3,
                                                        {u(c.head_dim), u(c.num_heads_q), u(a.total_q)},
                                                        {1, a.q_head_stride, a.q_row_stride},
                                                        {kPartDims, u(group), u(tokens)}},
                                                       bf16);
    }
    // Packed K and V are one page of all rows, where boxes begin at any.
    const auto make_maps = [&](const char* name, const void* data, int32_t dim, int64_t page, int64_t row,
                               int64_t head) {
        KvMaps maps{};
        const auto make_whole = [&](int32_t keys) {
            // A box of packed keys begins at any row. The copy engine checks its first unit's rows alone: the kernel reads none
            // past a sequence's keys.
            const int64_t rows = paged ? kUnitKeys : page_rows;
            const int64_t units = paged ? (num_pages - 1) * maps.page_units + page_rows / kUnitKeys
                                        : std::min<int64_t>(page_rows, c.block_n) / kUnitKeys;
            return make_map(encode,
                            {name,
                             data,
                             5,
                             {kPartDims, n(rows), u(dim / kPartDims), u(c.num_heads_kv), n(units)},
                             {1, row, kPartDims, head, kUnitKeys * row},
                             {kPartDims, kUnitKeys, u(dim / kPartDims), 1, u(keys / kUnitKeys)}},
                            bf16);
        };
        if (p.has_whole) {
            maps.page_units = static_cast<int32_t>(num_pages > 1 ? page / (kUnitKeys * row) : page_rows / kUnitKeys);
            maps.whole = make_whole(p.box_rows);
        }
        maps.small = p.one_box ? make_whole(kUnitKeys)
                               : make_map(encode,
                                          {name,
                                           data,
                                           4,
                                           {u(dim), n(page_rows), u(c.num_heads_kv), n(num_pages)},
                                           {1, row, head, page},
                                           {kPartDims, u(p.box_rows), 1, 1}},
                                          bf16);
        return maps;
    };
    p.k = make_maps("k", a.k, c.head_dim, a.k_page_stride, a.k_row_stride, a.k_head_stride);
    p.v = make_maps("v", a.v, c.head_dim_v, a.v_page_stride, a.v_row_stride, a.v_head_stride);
    return p;
}

}  // namespace varattn::sm90

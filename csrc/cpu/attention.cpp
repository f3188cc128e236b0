// Attention on the CPU: threads take the plan's work items one by one, as the CTAs of a GPU do. An item's arithmetic does
// not depend on the thread that does it, and splits are merged in index order, so results do not depend on timing.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <limits>
#include <system_error>
#include <thread>
#include <vector>

#include "core/check.h"
#include "cpu/tile_math.h"
#include "varattn/varattn.hpp"

namespace varattn {
namespace {

using cpu::kBlockKeys;
using cpu::SoftmaxRow;

constexpr KernelConfig kKernel = kKernelTable[kKernelCpu];
static_assert(kKernel.block_n == kBlockKeys && kKernel.tile_rows % cpu::kRowStep == 0 && kKernel.tile_rows_decode == 0);

constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();
constexpr float kLn2 = 0.6931471805599453f;

// A thread's tiles.
struct Scratch {
    Scratch(const PlanConfig& c, int32_t thread)
        : thread(thread),
          out_stride(round_up(c.head_dim_v, cpu::kLanes)),
          kv_stride(std::max(c.head_dim, out_stride)),
          q(kKernel.tile_rows * c.head_dim),
          kv(kBlockKeys * kv_stride),
          k(c.head_dim * kBlockKeys),
          scores(kKernel.tile_rows * kBlockKeys),
          out(kKernel.tile_rows * out_stride),
          rescale(kKernel.tile_rows),
          softmax(kKernel.tile_rows),
          visible(kKernel.tile_rows) {}

    int32_t thread, out_stride, kv_stride;
    std::vector<float> q;        // (tile_rows, head_dim)
    std::vector<float> kv;       // (kBlockKeys, kv_stride): a block of K, then of V; columns past head_dim_v are unused
    std::vector<float> k;        // (head_dim, kBlockKeys)
    std::vector<float> scores;   // (tile_rows, kBlockKeys)
    std::vector<float> out;      // (tile_rows, out_stride)
    std::vector<float> rescale;  // (tile_rows)
    std::vector<SoftmaxRow> softmax;  // (tile_rows)
    std::vector<Range> visible;       // (tile_rows) keys that the row sees
};

// K or V.
struct Cache {
    const void* data;
    int64_t page_stride, row_stride, head_stride;
    int32_t dim;
};

class Attention {
public:
    explicit Attention(const AttentionParams& params)
        : p_(params),
          c_(params.config),
          header_(static_cast<PlanHeader*>(params.plan)),
          items_(reinterpret_cast<const WorkItem*>(static_cast<char*>(params.plan) + plan_layout(c_).items)),
          dtype_(static_cast<DType>(c_.dtype)),
          group_(group_size(c_)),
          num_tasks_(int64_t{header_->num_items} * c_.num_heads_kv),
          k_{p_.k, p_.k_page_stride, p_.k_row_stride, p_.k_head_stride, c_.head_dim},
          v_{p_.v, p_.v_page_stride, p_.v_row_stride, p_.v_head_stride, c_.head_dim_v} {
        const WorkspaceLayout layout = workspace_layout(c_);
        char* workspace = static_cast<char*>(params.workspace);
        arrivals_ = reinterpret_cast<uint32_t*>(workspace + layout.arrivals);
        partial_lse_ = reinterpret_cast<float*>(workspace + layout.partial_lse);
        partial_out_ = reinterpret_cast<float*>(workspace + layout.partial_out);
        partial_rows_ = layout.partial_rows;
    }

    int64_t num_tasks() const { return num_tasks_; }

    // Does tasks until none is left. Any number of threads may be in here, each with its own scratch.
    void run(Scratch& s) {
        const int64_t front = int64_t{header_->num_front_items} * c_.num_heads_kv;
        for (int64_t next; (next = next_task_.fetch_add(1, std::memory_order_relaxed)) < num_tasks_;) {
            const int64_t task = next < front ? next : num_tasks_ - 1 - (next - front);  // either end's longest first
            const WorkItem& item = items_[task / c_.num_heads_kv];
            const auto head_kv = static_cast<int32_t>(task % c_.num_heads_kv);
            const uint64_t begin = p_.trace ? now_ns() : 0;
            attend(item, head_kv, s);
            if (item.num_splits == 1) {
                write_rows(item, head_kv, s);
            } else if (write_partial(item, head_kv, s)) {
                const uint64_t merge_begin = p_.trace ? now_ns() : 0;
                merge_splits(item, head_kv, s);
                record(task, s.thread, kTraceMerge, merge_begin);
            }
            record(task, s.thread, kTraceTask, begin);
        }
    }

    // Rows of q that belong to no sequence.
    void write_padding() const {
        if (p_.leave_padding) return;
        const std::vector<float> zeros(c_.head_dim_v);
        auto write = [&](int32_t begin, int32_t end) {
            for (int32_t row = begin; row < end; ++row)
                for (int32_t head = 0; head < c_.num_heads_q; ++head)
                    write_row(row, head, zeros.data(), 1.0f, kMinusInfinity);
        };
        write(0, std::min(header_->q_begin, p_.total_q));
        write(std::min(header_->q_end, p_.total_q), p_.total_q);
    }

private:
    // Where a packed row of an item is in q and out.
    struct Place {
        int64_t row;
        int32_t head;
        bool exists;
    };
    Place place(const WorkItem& item, int32_t head_kv, int32_t r) const {
        const int32_t packed = item.row_begin + r;
        const int64_t row = int64_t{item.q_begin} + packed / group_;
        return {row, head_kv * group_ + packed % group_, row < p_.total_q};
    }

    const void* element(const void* data, int64_t index) const {
        return static_cast<const char*>(data) + index * dtype_bytes(dtype_);
    }

    static uint64_t now_ns() {
        const auto now = std::chrono::steady_clock::now().time_since_epoch();
        return std::chrono::duration_cast<std::chrono::nanoseconds>(now).count();
    }

    // Of something that ends now. Nothing without a trace.
    void record(int64_t task, int32_t thread, TraceKind kind, uint64_t begin_ns) const {
        if (!p_.trace) return;
        auto* header = static_cast<TraceHeader*>(p_.trace);
        const uint64_t slot = std::atomic_ref<uint64_t>(header->count).fetch_add(1, std::memory_order_relaxed);
        if (slot >= static_cast<uint64_t>(p_.trace_capacity)) return;
        const auto item = static_cast<uint32_t>(task / c_.num_heads_kv),
                   head = static_cast<uint32_t>(task % c_.num_heads_kv);
        reinterpret_cast<TraceRecord*>(header + 1)[slot] = {trace_pair(item, head), trace_pair(thread, kind), begin_ns,
                                                            now_ns()};
    }

    void raise(uint32_t status) const {
        std::atomic_ref<uint32_t>(header_->status).fetch_or(status, std::memory_order_relaxed);
    }

    // Keys of the sequence that there are: its length, cut at the end of its block-table row or of k and v.
    int32_t present_keys(const WorkItem& item) const {
        const int64_t capacity = p_.block_table ? int64_t{p_.max_pages_per_seq} * p_.page_size
                                                : std::max<int64_t>(0, int64_t{p_.total_k} - item.k_begin);
        if (item.kv_len > capacity) raise(kStatusKeysPastEnd);
        return static_cast<int32_t>(std::min<int64_t>(item.kv_len, capacity));
    }

    // A key's row of K or V, or null: its page is no page.
    const void* key_row(const Cache& cache, const WorkItem& item, int32_t head_kv, int32_t key) const {
        int64_t index = head_kv * cache.head_stride;
        if (p_.block_table) {
            const int32_t page = p_.block_table[item.seq * p_.block_table_stride + key / p_.page_size];
            if (page < 0 || page >= p_.num_pages) {
                raise(kStatusPageId);
                return nullptr;
            }
            index += page * cache.page_stride + key % p_.page_size * cache.row_stride;
        } else {
            index += (int64_t{item.k_begin} + key) * cache.row_stride;
        }
        return element(cache.data, index);
    }

    // s.kv = rows of keys [first_key, first_key + kBlockKeys). Zero, not what memory holds, outside `wanted`: it may be NaN.
    void load_block(const Cache& cache, const WorkItem& item, int32_t head_kv, int32_t first_key, Range wanted,
                    Scratch& s) const {
        for (int32_t j = 0; j < kBlockKeys; ++j) {
            const int32_t key = first_key + j;
            float* to = &s.kv[j * s.kv_stride];
            const bool exists = key >= wanted.begin && key < wanted.end;
            if (const void* from = exists ? key_row(cache, item, head_kv, key) : nullptr)
                cpu::load_row(from, dtype_, cache.dim, to);
            else
                std::fill(to, to + cache.dim, 0.0f);
        }
    }

    // Online softmax over the item's KV blocks: s.out, not yet normalised, and s.softmax.
    void attend(const WorkItem& item, int32_t head_kv, Scratch& s) const {
        const int32_t num_rows = item.row_end - item.row_begin, padded_rows = round_up(num_rows, cpu::kRowStep);
        const int32_t present = present_keys(item);
        std::fill(s.q.begin(), s.q.end(), 0.0f);
        std::fill(s.out.begin(), s.out.end(), 0.0f);
        std::fill(s.rescale.begin(), s.rescale.end(), 1.0f);
        std::fill(s.softmax.begin(), s.softmax.end(), SoftmaxRow{kMinusInfinity, 0.0f});
        for (int32_t r = 0; r < num_rows; ++r) {
            Range& visible = s.visible[r];
            visible = visible_keys(c_, item.q_len, item.kv_len, (item.row_begin + r) / group_);
            visible.end = std::min(visible.end, present);
            const Place at = place(item, head_kv, r);
            if (at.exists)
                cpu::load_row(element(p_.q, at.row * p_.q_row_stride + at.head * p_.q_head_stride), dtype_, c_.head_dim,
                              &s.q[r * c_.head_dim]);
            else
                raise(kStatusRowsPastEnd);
        }
        const Range seen{s.visible[0].begin, s.visible[num_rows - 1].end};  // both bounds grow from row to row

        // Planned blocks may lie past the keys that there are: those hold nothing.
        const int32_t block_end = std::min(item.block_end, ceil_div(std::max(0, seen.end), kBlockKeys));
        for (int32_t block = item.block_begin; block < block_end; ++block) {
            const int32_t first_key = block * kBlockKeys;
            load_block(k_, item, head_kv, first_key, seen, s);
            cpu::transpose_block(s.kv.data(), s.kv_stride, c_.head_dim, s.k.data());
            cpu::multiply(s.q.data(), c_.head_dim, s.k.data(), kBlockKeys, s.scores.data(), kBlockKeys, nullptr,
                          padded_rows, c_.head_dim, kBlockKeys);
            cpu::scale_scores(s.scores.data(), int64_t{num_rows} * kBlockKeys, p_.softmax_scale, p_.softcap);
            for (int32_t r = 0; r < num_rows; ++r) {
                const int begin = clamp(s.visible[r].begin - first_key, 0, kBlockKeys);
                const int end = clamp(s.visible[r].end - first_key, begin, kBlockKeys);
                s.rescale[r] = cpu::softmax_block(&s.scores[r * kBlockKeys], begin, end, s.softmax[r]);
            }
            load_block(v_, item, head_kv, first_key, seen, s);
            cpu::multiply(s.scores.data(), kBlockKeys, s.kv.data(), s.kv_stride, s.out.data(), s.out_stride,
                          s.rescale.data(), padded_rows, kBlockKeys, s.out_stride);
        }
    }

    void write_row(int64_t row, int32_t head, const float* out, float scale, float lse) const {
        const int64_t index = row * p_.out_row_stride + head * p_.out_head_stride;
        cpu::store_row(out, scale, c_.head_dim_v, dtype_, const_cast<void*>(element(p_.out, index)));
        if (p_.lse) p_.lse[head * p_.lse_head_stride + row] = lse;
    }

    // Writes a row whose outputs are `out` * scale and whose log-sum-exp is `lse`, both without the sink, which joins here.
    void finish_row(const Place& at, const float* out, float scale, float lse) const {
        if (p_.sinks) {
            const float sink = p_.sinks[at.head], max = std::max(lse, sink);
            const float with_sink =
                max == kMinusInfinity ? max : max + std::log(std::exp(lse - max) + std::exp(sink - max));
            if (lse != kMinusInfinity) scale *= std::exp(lse - with_sink);
            lse = with_sink;
        }
        write_row(at.row, at.head, out, scale, lse);
    }

    static bool is_empty(const SoftmaxRow& row) { return row.max == kMinusInfinity && row.sum == 0.0f; }
    static float natural_lse(const SoftmaxRow& row) {
        return is_empty(row) ? kMinusInfinity : row.max * kLn2 + std::log(row.sum);
    }
    static float one_over_sum(const SoftmaxRow& row) { return is_empty(row) ? 0.0f : 1.0f / row.sum; }

    void write_rows(const WorkItem& item, int32_t head_kv, const Scratch& s) const {
        for (int32_t r = 0; r < item.row_end - item.row_begin; ++r)
            if (const Place at = place(item, head_kv, r); at.exists)
                finish_row(at, &s.out[r * s.out_stride], one_over_sum(s.softmax[r]), natural_lse(s.softmax[r]));
    }

    int64_t partial_index(const WorkItem& item, int32_t head_kv, int32_t split, int32_t r) const {
        return head_kv * partial_rows_ + item.partial_row + int64_t{split} * (item.row_end - item.row_begin) + r;
    }

    // Returns true if all other splits of the tile have arrived: this one merges them.
    bool write_partial(const WorkItem& item, int32_t head_kv, const Scratch& s) const {
        for (int32_t r = 0; r < item.row_end - item.row_begin; ++r) {
            const int64_t index = partial_index(item, head_kv, item.split, r);
            const float scale = one_over_sum(s.softmax[r]);
            const float* out = &s.out[r * s.out_stride];
            for (int32_t d = 0; d < c_.head_dim_v; ++d)
                partial_out_[index * c_.head_dim_v + d] = out[d] * scale;
            partial_lse_[index] = natural_lse(s.softmax[r]);
        }
        std::atomic_ref<uint32_t> arrivals(arrivals_[int64_t{item.split_tile} * c_.num_heads_kv + head_kv]);
        if (arrivals.fetch_add(1, std::memory_order_acq_rel) + 1 != static_cast<uint32_t>(item.num_splits))
            return false;
        arrivals.store(0, std::memory_order_relaxed);
        return true;
    }

    void merge_splits(const WorkItem& item, int32_t head_kv, Scratch& s) const {
        float* out = s.out.data();
        for (int32_t r = 0; r < item.row_end - item.row_begin; ++r) {
            const Place at = place(item, head_kv, r);
            if (!at.exists) continue;
            float max = kMinusInfinity, sum = 0.0f;
            for (int32_t split = 0; split < item.num_splits; ++split)
                max = std::max(max, partial_lse_[partial_index(item, head_kv, split, r)]);
            std::fill(out, out + c_.head_dim_v, 0.0f);
            for (int32_t split = 0; split < item.num_splits; ++split) {
                const int64_t index = partial_index(item, head_kv, split, r);
                const float lse = partial_lse_[index];
                if (lse == kMinusInfinity) continue;
                const float weight = std::exp(lse - max);
                sum += weight;
                for (int32_t d = 0; d < c_.head_dim_v; ++d)
                    out[d] += weight * partial_out_[index * c_.head_dim_v + d];
            }
            const bool empty = max == kMinusInfinity && sum == 0.0f;
            finish_row(at, out, empty ? 0.0f : 1.0f / sum, empty ? kMinusInfinity : max + std::log(sum));
        }
    }

    const AttentionParams& p_;
    const PlanConfig& c_;
    PlanHeader* header_;
    const WorkItem* items_;
    DType dtype_;
    int32_t group_;
    int64_t num_tasks_;
    Cache k_, v_;
    uint32_t* arrivals_;
    float* partial_lse_;
    float* partial_out_;
    int64_t partial_rows_;
    std::atomic<int64_t> next_task_{0};
};

// The kernel's answer to a foreign plan is a status word; here the caller can also be told at once.
void check_plan(const AttentionParams& p) {
    auto* header = static_cast<PlanHeader*>(p.plan);
    std::atomic_ref<uint32_t> status(header->status);
    if (header->magic != kPlanMagic) {
        status.fetch_or(kStatusNotAPlan, std::memory_order_relaxed);
        fail(ErrorCode::kPlanMismatch, "mha_varlen", "plan", "a buffer that holds no plan of this version",
             "one that a planner of this library wrote");
    }
    if (const uint32_t fields = differing_fields(header->config, p.config)) {
        status.fetch_or(kStatusForeignPlan | fields << kStatusFirstField, std::memory_order_relaxed);
        check_plan_config(header->config, p.config);
    }
}

}  // namespace

void mha_varlen_cpu(const AttentionParams& params, int32_t num_threads) {
    check_attention_params(params, DeviceType::kCpu);
    if (num_threads < 0)
        fail(ErrorCode::kInvalidArgument, "mha_varlen", "num_threads", std::to_string(num_threads),
             "a number of threads, or 0 for one a core");
    check_plan(params);

    const AttentionParams present = with_keys_that_exist(params);
    Attention attention(present);
    attention.write_padding();
    if (num_threads == 0) num_threads = std::max(1, static_cast<int32_t>(std::thread::hardware_concurrency()));
    num_threads = static_cast<int32_t>(std::min<int64_t>(num_threads, attention.num_tasks()));
    if (num_threads == 0) return;
    // All memory is taken before the first item: an item once begun is always finished, so the workspace stays clean.
    std::vector<Scratch> scratch;
    scratch.reserve(num_threads);
    for (int32_t i = 0; i < num_threads; ++i)
        scratch.emplace_back(params.config, i);
    std::vector<std::thread> helpers;
    helpers.reserve(num_threads - 1);
    try {
        for (int32_t i = 1; i < num_threads; ++i)
            helpers.emplace_back([&, i] { attention.run(scratch[i]); });
    } catch (const std::system_error&) {
        // The machine gives no more threads: those that run do all the work.
    }
    attention.run(scratch[0]);
    for (std::thread& helper : helpers)
        helper.join();
}

}  // namespace varattn

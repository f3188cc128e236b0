// A step with its tensors, the CPU backend's answer, and a naive reference in double that reads the same bytes.
// Whatever no row may look at is NaN or infinity; whatever no key may name is a wild page id.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "cpu/float16.h"
#include "support.h"

namespace varattn::test {

// (pages, rows, heads, dim) with random strides, multiples of `alignment`, in the bytes of its dtype.
class Tensor {
public:
    Tensor() = default;
    Tensor(DType dtype, int64_t pages, int64_t rows, int64_t heads, int64_t dim, int32_t alignment, Random& random)
        : dtype_(dtype) {
        auto gap = [&] { return random.chance(0.3) ? random.integer(1, 9) * alignment : 0; };
        const int64_t vector = dim + gap();
        if (random.chance(0.5)) {
            head_stride = vector;
            row_stride = heads * head_stride + gap();
            page_stride = rows * row_stride + gap();
        } else {
            row_stride = vector;
            head_stride = rows * row_stride + gap();
            page_stride = heads * head_stride + gap();
        }
        bytes_.resize(std::max<int64_t>(1, pages * page_stride) * dtype_bytes(dtype), 0xff);  // NaN in every dtype
    }

    double get(int64_t page, int64_t row, int64_t head, int64_t d) const {
        const int64_t i = index(page, row, head, d);
        if (dtype_ == DType::kFloat32) return at<float>(i);
        return dtype_ == DType::kFloat16 ? to_float(at<Half>(i)) : to_float(at<BFloat16>(i));
    }
    void set(int64_t page, int64_t row, int64_t head, int64_t d, float x) {
        const int64_t i = index(page, row, head, d);
        if (dtype_ == DType::kFloat32)
            put(i, x);
        else if (dtype_ == DType::kFloat16)
            put(i, from_float<Half>(x));
        else
            put(i, from_float<BFloat16>(x));
    }
    void* data() { return bytes_.data(); }
    const std::vector<uint8_t>& bytes() const { return bytes_; }
    int64_t index(int64_t page, int64_t row, int64_t head, int64_t d) const {
        return page * page_stride + row * row_stride + head * head_stride + d;
    }

    int64_t page_stride = 0, row_stride = 0, head_stride = 0;

private:
    template <class T>
    T at(int64_t i) const {
        T x;
        std::memcpy(&x, &bytes_[i * sizeof(T)], sizeof x);
        return x;
    }
    template <class T>
    void put(int64_t i, T x) {
        std::memcpy(&bytes_[i * sizeof x], &x, sizeof x);
    }

    DType dtype_ = DType::kFloat32;
    std::vector<uint8_t> bytes_;
};

struct Answer {
    std::vector<double> out;  // (total_q, num_heads_q, head_dim_v)
    std::vector<double> lse;  // (num_heads_q, total_q)
};

// What a problem is made from. Lengths, then how they are stored.
struct ProblemSpec {
    PlanOptions options;  // max_seqs and max_total_q are filled in
    std::vector<int32_t> q_lens, kv_lens;
    int32_t page_size = 0;  // 0: packed
    bool packed_with_seqused = false;
    int32_t rows_before = 0, rows_after = 0;  // rows of q that belong to no sequence
    float softmax_scale = 0.125f, softcap = 0.0f;
    bool with_sinks = false;
    Device device = cpu_device();
    int32_t alignment() const { return device.type == DeviceType::kCpu ? 1 : 8; }  // of strides, in elements
};

class Problem {
public:
    Problem(const ProblemSpec& given, Random& random) : spec(given), c_options(spec.options) {
        const auto n = static_cast<int32_t>(spec.q_lens.size());
        cu_seqlens_q.push_back(spec.rows_before);
        for (int32_t len : spec.q_lens)
            cu_seqlens_q.push_back(cu_seqlens_q.back() + len);
        total_q = cu_seqlens_q.back() + spec.rows_after;
        c_options.max_seqs = n;
        c_options.max_total_q = total_q + random.integer(0, 3);
        if (c_options.head_dim_v == 0) c_options.head_dim_v = c_options.head_dim;
        config = make_plan_config(spec.device, c_options);
        const PlanOptions& o = c_options;

        q = Tensor(o.dtype, 1, total_q, o.num_heads_q, o.head_dim, spec.alignment(), random);
        for (int64_t row = 0; row < total_q; ++row)
            for (int32_t h = 0; h < o.num_heads_q; ++h)
                for (int32_t d = 0; d < o.head_dim; ++d) {
                    const bool padding = row < spec.rows_before || row >= cu_seqlens_q.back();
                    if (!padding) q.set(0, row, h, d, random.normal());
                }
        if (spec.page_size > 0)
            make_pages(random);
        else
            make_ranges(random);
        for (int32_t i = 0; i < n; ++i)
            for (int32_t key = 0; key < spec.kv_lens[i]; ++key)
                if (is_seen(i, key)) fill_key(i, key, random);
        if (spec.with_sinks)
            for (int32_t h = 0; h < o.num_heads_q; ++h)
                sinks.push_back(random.chance(0.1) ? -std::numeric_limits<float>::infinity() : 3 * random.normal());
        out = Tensor(o.dtype, 1, total_q, o.num_heads_q, o.head_dim_v, spec.alignment(), random);
        lse.assign(int64_t{o.num_heads_q} * (total_q + 3), kUntouched);
    }

    bool paged() const { return spec.page_size > 0; }
    SequenceLengths lengths() const {
        return {cu_seqlens_q.data(), seqused_k.empty() ? nullptr : seqused_k.data(),
                cu_seqlens_k.empty() ? nullptr : cu_seqlens_k.data()};
    }

    AttentionParams params() {
        AttentionParams p{};
        p.config = config;
        p.q = q.data(), p.k = k.data(), p.v = v.data(), p.out = out.data(), p.lse = lse.data();
        p.block_table = paged() ? block_table.data() : nullptr;
        p.sinks = sinks.empty() ? nullptr : sinks.data();
        p.q_row_stride = q.row_stride, p.q_head_stride = q.head_stride;
        p.k_page_stride = k.page_stride, p.k_row_stride = k.row_stride, p.k_head_stride = k.head_stride;
        p.v_page_stride = v.page_stride, p.v_row_stride = v.row_stride, p.v_head_stride = v.head_stride;
        p.out_row_stride = out.row_stride, p.out_head_stride = out.head_stride;
        p.lse_head_stride = total_q + 3;
        p.block_table_stride = table_stride;
        p.total_q = total_q, p.total_k = total_k;
        p.num_pages = num_pages, p.page_size = spec.page_size, p.max_pages_per_seq = max_pages;
        p.softmax_scale = spec.softmax_scale, p.softcap = spec.softcap;
        return p;
    }

    // Plans and attends, from outputs full of NaN and with a workspace that must come back clean.
    Answer attend(int32_t num_threads, uint32_t expected_status = 0) {
        Plan plan(config, lengths());
        AttentionParams p = params();
        return attend(p, plan, num_threads, expected_status);
    }

    Answer attend(AttentionParams p, Plan& plan, int32_t num_threads, uint32_t expected_status) {
        return attend_by(p, plan, expected_status,
                         [&](const AttentionParams& given) { mha_varlen_cpu(given, num_threads); });
    }

    template <class MhaVarlen>
    Answer attend_by(AttentionParams p, Plan& plan, uint32_t expected_status, const MhaVarlen& mha_varlen) {
        std::vector<uint8_t> untouched(out.bytes().size(), 0xff);
        std::memcpy(out.data(), untouched.data(), untouched.size());
        std::fill(lse.begin(), lse.end(), kUntouched);
        Buffer workspace(workspace_size(config), 0);
        p.plan = plan.data();
        p.workspace = workspace.data();
        mha_varlen(p);
        num_split_tiles += plan.header().num_split_tiles;

        EXPECT_EQ(plan.header().status, expected_status) << describe_status(plan.header().status);
        EXPECT_EQ(find_plan_fault(config, plan.costs(), lengths(), plan.data()), "");
        EXPECT_TRUE(plan.intact() && workspace.intact());
        const auto* counters = static_cast<const uint8_t*>(workspace.data());
        EXPECT_TRUE(std::all_of(counters, counters + workspace_layout(config).partial_lse, [](uint8_t x) {
            return x == 0;
        })) << "the workspace's counters were not restored";
        return read_outputs(p.total_q);
    }

    // Of the magnitudes of values: the size of what is added up.
    Answer reference(bool of_magnitudes = false) const {
        const PlanOptions& o = c_options;
        const double nothing = -std::numeric_limits<double>::infinity();
        Answer answer;
        answer.out.assign(int64_t{total_q} * o.num_heads_q * o.head_dim_v, 0.0);
        answer.lse.assign(int64_t{o.num_heads_q} * total_q, nothing);
        std::vector<double> scores;
        for (size_t i = 0; i < spec.q_lens.size(); ++i)
            for (int32_t t = 0; t < spec.q_lens[i]; ++t)
                for (int32_t h = 0; h < o.num_heads_q; ++h) {
                    const int64_t row = cu_seqlens_q[i] + t;
                    const auto seq = static_cast<int32_t>(i);
                    const int32_t head_kv = h / (o.num_heads_q / o.num_heads_kv);
                    double max = sinks.empty() ? nothing : sinks[h], sum = 0;
                    scores.assign(spec.kv_lens[i], nothing);
                    for (int32_t key = 0; key < spec.kv_lens[i]; ++key) {
                        if (!visible(seq, t, key)) continue;
                        double score = 0;
                        const Slot slot = find_slot(seq, key);
                        for (int32_t d = 0; d < o.head_dim; ++d)
                            score += q.get(0, row, h, d) * k.get(slot.page, slot.row, head_kv, d);
                        score *= spec.softmax_scale;
                        if (spec.softcap > 0) score = spec.softcap * std::tanh(score / spec.softcap);
                        scores[key] = score;
                        max = std::max(max, score);
                    }
                    if (max == nothing) continue;
                    if (!sinks.empty()) sum += std::exp(sinks[h] - max);
                    double* to = &answer.out[(row * o.num_heads_q + h) * o.head_dim_v];
                    for (int32_t key = 0; key < spec.kv_lens[i]; ++key) {
                        if (scores[key] == nothing) continue;
                        const Slot slot = find_slot(seq, key);
                        const double weight = std::exp(scores[key] - max);
                        sum += weight;
                        for (int32_t d = 0; d < o.head_dim_v; ++d)
                            to[d] += weight * (of_magnitudes ? std::fabs(v.get(slot.page, slot.row, head_kv, d))
                                                             : v.get(slot.page, slot.row, head_kv, d));
                    }
                    for (int32_t d = 0; d < o.head_dim_v; ++d)
                        to[d] /= sum;
                    answer.lse[h * int64_t{total_q} + row] = max + std::log(sum);
                }
        return answer;
    }

    // Reports the worst coordinate of either output.
    void expect_close(const Answer& got, const Answer& want) const {
        const double step = c_options.dtype == DType::kFloat32   ? 1e-5
                            : c_options.dtype == DType::kFloat16 ? 1e-3
                                                                 : 8e-3;
        expect_close("out (row, head, dim)", got.out, want.out, 1e-4, step, c_options.num_heads_q,
                     c_options.head_dim_v);
        expect_close("lse (head, row)", got.lse, want.lse, 1e-4, 1e-5, 1, total_q);
    }

    ProblemSpec spec;
    PlanOptions c_options;
    PlanConfig config{};
    std::vector<int32_t> cu_seqlens_q, cu_seqlens_k, seqused_k, block_table;
    int32_t total_q = 0, total_k = 0, num_pages = 0, max_pages = 0, table_stride = 0;
    Tensor q, k, v, out;
    std::vector<float> lse, sinks;
    int num_split_tiles = 0;

    static constexpr float kUntouched = 12345.0f;

    struct Slot {
        int64_t page, row;
    };
    Slot find_slot(int32_t seq, int32_t key) const {
        if (!paged()) return {0, int64_t{cu_seqlens_k[seq]} + key};
        return {block_table[int64_t{seq} * table_stride + key / spec.page_size], key % spec.page_size};
    }

private:
    bool visible(int32_t seq, int32_t token, int32_t key) const {
        const int32_t diagonal = spec.kv_lens[seq] - spec.q_lens[seq] + token;
        const int32_t right = c_options.causal ? 0 : c_options.window_right;
        return (c_options.window_left < 0 || key >= diagonal - c_options.window_left) &&
               (right < 0 || key <= diagonal + right);
    }
    bool is_seen(int32_t seq, int32_t key) const {
        for (int32_t t = 0; t < spec.q_lens[seq]; ++t)
            if (visible(seq, t, key)) return true;
        return false;
    }
    void fill_key(int32_t seq, int32_t key, Random& random) {
        const Slot slot = find_slot(seq, key);
        for (int32_t h = 0; h < c_options.num_heads_kv; ++h) {
            for (int32_t d = 0; d < c_options.head_dim; ++d)
                k.set(slot.page, slot.row, h, d, random.normal());
            for (int32_t d = 0; d < c_options.head_dim_v; ++d)
                v.set(slot.page, slot.row, h, d, random.normal());
        }
    }
    void make_caches(int64_t pages, int64_t rows, Random& random) {
        const int32_t heads = c_options.num_heads_kv;
        k = Tensor(c_options.dtype, pages, rows, heads, c_options.head_dim, spec.alignment(), random);
        v = Tensor(c_options.dtype, pages, rows, heads, c_options.head_dim_v, spec.alignment(), random);
        if (random.chance(0.5)) return;  // all NaN so far; or infinities
        for (int64_t page = 0; page < pages; ++page)
            for (int64_t row = 0; row < rows; ++row)
                for (int32_t h = 0; h < c_options.num_heads_kv; ++h)
                    for (int32_t d = 0; d < std::max(c_options.head_dim, c_options.head_dim_v); ++d) {
                        const float poison =
                            std::numeric_limits<float>::infinity() * (random.chance(0.5) ? 1.0f : -1.0f);
                        if (d < c_options.head_dim) k.set(page, row, h, d, poison);
                        if (d < c_options.head_dim_v) v.set(page, row, h, d, poison);
                    }
    }
    void make_pages(Random& random) {
        int32_t longest = 0;
        for (int32_t len : spec.kv_lens) {
            longest = std::max(longest, ceil_div(len, spec.page_size));
            num_pages += ceil_div(len, spec.page_size);
        }
        num_pages += random.integer(0, 3);
        max_pages = longest + random.integer(0, 3);
        table_stride = max_pages + random.integer(0, 2);
        std::vector<int32_t> free(num_pages);
        std::iota(free.begin(), free.end(), 0);
        for (int32_t i = num_pages - 1; i > 0; --i)
            std::swap(free[i], free[random.integer(0, i)]);
        for (int32_t len : spec.kv_lens) {
            for (int32_t page = 0; page < table_stride; ++page) {
                const bool used = page < ceil_div(len, spec.page_size);
                block_table.push_back(used ? free.back()
                                           : random.pick({INT32_MIN, -1, num_pages, INT32_MAX, 0x40000000}));
                if (used) free.pop_back();
            }
            seqused_k.push_back(len);
        }
        block_table.push_back(-1);  // so that an empty batch has a table, too
        make_caches(num_pages, spec.page_size, random);
    }
    void make_ranges(Random& random) {
        cu_seqlens_k.push_back(spec.packed_with_seqused ? random.integer(0, 5) : 0);
        for (int32_t len : spec.kv_lens) {
            const int32_t slack = spec.packed_with_seqused ? random.integer(0, 70) : 0;
            cu_seqlens_k.push_back(cu_seqlens_k.back() + len + slack);
            if (spec.packed_with_seqused) seqused_k.push_back(len);
        }
        total_k = cu_seqlens_k.back() + random.integer(0, 2);
        make_caches(1, total_k, random);
    }

    Answer read_outputs(int32_t rows) const {
        const PlanOptions& o = c_options;
        Answer answer;
        std::vector<bool> is_output(out.bytes().size());
        const int bytes = dtype_bytes(o.dtype);
        for (int64_t row = 0; row < rows; ++row)
            for (int32_t h = 0; h < o.num_heads_q; ++h)
                for (int32_t d = 0; d < o.head_dim_v; ++d) {
                    answer.out.push_back(out.get(0, row, h, d));
                    for (int b = 0; b < bytes; ++b)
                        is_output[out.index(0, row, h, d) * bytes + b] = true;
                }
        bool clean = true;
        for (size_t i = 0; i < is_output.size(); ++i)
            clean &= is_output[i] || out.bytes()[i] == 0xff;
        EXPECT_TRUE(clean) << "bytes between the rows of out were written";
        for (int32_t h = 0; h < o.num_heads_q; ++h)
            for (int64_t i = 0; i < total_q + 3; ++i) {
                const float x = lse[h * int64_t{total_q + 3} + i];
                if (i < rows)
                    answer.lse.push_back(x);
                else
                    EXPECT_EQ(x, kUntouched);
            }
        return answer;
    }

    static void expect_close(const char* what, const std::vector<double>& got, const std::vector<double>& want,
                             double absolute, double relative, int64_t middle, int64_t inner) {
        ASSERT_EQ(got.size(), want.size());
        double worst = 0;
        size_t at = 0;
        for (size_t i = 0; i < got.size(); ++i) {
            if (got[i] == want[i]) continue;
            double error = std::fabs(got[i] - want[i]) / (absolute + relative * std::fabs(want[i]));
            if (!(error >= 0)) error = std::numeric_limits<double>::infinity();  // a NaN
            if (error > worst) worst = error, at = i;
        }
        EXPECT_LE(worst, 1.0) << what << ": worst at (" << at / (middle * inner) << ", " << at / inner % middle << ", "
                              << at % inner << "): got " << got[at] << ", want " << want[at];
    }
};

}  // namespace varattn::test

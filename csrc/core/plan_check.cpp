// The proof of a plan. It says again, in its own words and in 64 bits, what the rules of schedule.h are to achieve.
#include <algorithm>
#include <cstring>
#include <numeric>
#include <sstream>
#include <vector>

#include "core/host_planner.h"

namespace varattn {
namespace {

// Builds the one sentence that find_plan_fault returns.
struct Fault {
    std::string text;

    template <class... Parts>
    bool require(bool ok, const Parts&... parts) {
        if (ok || !text.empty()) return ok;
        std::ostringstream stream;
        (stream << ... << parts);
        text = stream.str();
        return false;
    }
};

struct KeyRange {
    int64_t begin, end;
};

KeyRange keys_of_token(const PlanConfig& c, const SequenceShape& s, int64_t token) {
    const int64_t diagonal = int64_t{s.kv_len} - s.q_len + token;
    KeyRange keys{0, s.kv_len};
    if (c.window_left >= 0) keys.begin = std::max<int64_t>(0, diagonal - c.window_left);
    if (c.window_right >= 0) keys.end = std::min<int64_t>(s.kv_len, diagonal + c.window_right + 1);
    return keys;
}

class Proof {
public:
    Proof(const PlanConfig& c, const CostModel& costs, const SequenceLengths& lengths, const void* plan)
        : c_(c), costs_(costs), group_(c.num_heads_q / c.num_heads_kv) {
        length_status_ = read_lengths(c, lengths, seqs_);
        std::memcpy(&header_, plan, sizeof header_);
        items_ = reinterpret_cast<const WorkItem*>(static_cast<const char*>(plan) + plan_layout(c).items);
    }

    std::string run() {
        if (check_header() && check_items()) {
            sorted_.resize(header_.num_items);
            std::iota(sorted_.begin(), sorted_.end(), 0);
            std::sort(sorted_.begin(), sorted_.end(), [&](int32_t a, int32_t b) { return precedes(a, b); });
            check_tiles() && measure_tiles() && check_partials() && check_order();
        }
        return fault_.text;
    }

private:
    bool check_header() {
        const PlanHeader& h = header_;
        if (!fault_.require(h.magic == kPlanMagic, "magic: ", h.magic)) return false;
        const bool same_config = std::memcmp(&h.config, &c_, sizeof c_) == 0;
        if (!fault_.require(same_config, "the header's config is another")) return false;
        const uint32_t bits = kStatusCuSeqlensQ | kStatusCuSeqlensK | kStatusSequsedK;
        fault_.require((h.status & bits) == length_status_, "status: ", h.status, ", lengths say ", length_status_);
        const int32_t q_begin = seqs_.empty() ? 0 : seqs_.front().q_begin;
        const int32_t q_end = seqs_.empty() ? 0 : seqs_.back().q_begin + seqs_.back().q_len;
        fault_.require(h.q_begin == q_begin && h.q_end == q_end && q_begin >= 0 && q_end <= c_.max_total_q,
                       "q range: ", h.q_begin, ", ", h.q_end);
        fault_.require(h.num_items >= 0 && h.num_items <= max_items(c_), "num_items: ", h.num_items);
        fault_.require(h.num_front_items >= 0 && h.num_front_items <= h.num_items,
                       "num_front_items: ", h.num_front_items);
        fault_.require(h.num_front_ctas >= 0 && h.num_front_ctas <= c_.num_ctas, "num_front_ctas: ", h.num_front_ctas);
        fault_.require(h.section_heads >= 1 && h.section_heads <= c_.num_heads_kv, "section_heads: ", h.section_heads);
        return fault_.text.empty();
    }

    // What holds for each item alone.
    bool check_items() {
        bool has_front = false, has_back = false;
        for (int32_t i = 0; i < header_.num_items; ++i) {
            const WorkItem& w = items_[i];
            if (!fault_.require(w.seq >= 0 && w.seq < c_.max_seqs, "item ", i, ": seq ", w.seq)) return false;
            const SequenceShape& s = seqs_[w.seq];
            const int64_t rows = int64_t{s.q_len} * group_;
            const bool decode = is_decode(w);
            fault_.require(
                w.q_begin == s.q_begin && w.q_len == s.q_len && w.k_begin == s.k_begin && w.kv_len == s.kv_len, "item ",
                i, ": lengths of another sequence");
            fault_.require(w.flags == (decode && !c_.batch_invariant ? kItemDecode : 0), "item ", i, ": flags ",
                           w.flags);
            fault_.require(w.row_begin >= 0 && w.row_begin < w.row_end && w.row_end <= rows &&
                               w.row_end - w.row_begin <= (decode ? c_.tile_rows_decode : c_.tile_rows),
                           "item ", i, ": rows ", w.row_begin, ", ", w.row_end);
            fault_.require(w.num_splits >= 1 && w.num_splits <= c_.num_splits && w.split >= 0 && w.split < w.num_splits,
                           "item ", i, ": split ", w.split, " of ", w.num_splits);
            fault_.require(w.block_begin >= 0 && w.block_begin <= w.block_end, "item ", i, ": blocks ", w.block_begin,
                           ", ", w.block_end);
            fault_.require(w.num_splits == 1 || w.block_begin < w.block_end, "item ", i, ": an empty split");
            fault_.require((w.num_splits == 1) == (w.split_tile == -1), "item ", i, ": split_tile ", w.split_tile);
            fault_.require(w.cost == item_cost(costs_, decode, w.block_end - w.block_begin), "item ", i, ": cost ",
                           w.cost);
            fault_.require(decode == (i >= header_.num_front_items), "item ", i, ": at the wrong end of the queue");
            (decode ? has_back : has_front) = true;
        }
        const bool both_ends = has_front && has_back && c_.num_ctas > 1;
        fault_.require(!both_ends || (header_.num_front_ctas > 0 && header_.num_front_ctas < c_.num_ctas),
                       "num_front_ctas: ", header_.num_front_ctas, " leaves no CTA to one end");
        return fault_.text.empty();
    }

    bool is_decode(const WorkItem& w) const { return int64_t{seqs_[w.seq].q_len} * group_ <= c_.tile_rows_decode; }

    bool precedes(int32_t a, int32_t b) const {
        const WorkItem &x = items_[a], &y = items_[b];
        if (x.seq != y.seq) return x.seq < y.seq;
        if (x.row_begin != y.row_begin) return x.row_begin < y.row_begin;
        return x.split < y.split;
    }

    // Every row of every sequence lies in one tile, and the tile's splits cover exactly the blocks that its rows see.
    bool check_tiles() {
        size_t next = 0;
        for (int32_t seq = 0; seq < c_.max_seqs; ++seq) {
            const int64_t rows = int64_t{seqs_[seq].q_len} * group_;
            int32_t row = 0, tile = 0;
            while (row < rows) {
                if (!fault_.require(next < sorted_.size() && items_[sorted_[next]].seq == seq &&
                                        items_[sorted_[next]].row_begin == row,
                                    "sequence ", seq, ": row ", row, " is not covered once"))
                    return false;
                const size_t first = next;
                if (!check_splits(seq, tile++, next)) return false;
                row = items_[sorted_[first]].row_end;
            }
        }
        return fault_.require(next == sorted_.size(), "rows are covered twice");
    }

    bool check_splits(int32_t seq, int32_t tile, size_t& next) {
        const WorkItem& w = items_[sorted_[next]];
        KeyRange seen{c_.block_n * int64_t{w.block_begin}, 0};
        bool any = false;
        for (int64_t token = w.row_begin / group_; token <= (w.row_end - 1) / group_; ++token) {
            const KeyRange keys = keys_of_token(c_, seqs_[seq], token);
            if (keys.begin >= keys.end) continue;
            seen.begin = any ? std::min(seen.begin, keys.begin) : keys.begin;
            seen.end = any ? std::max(seen.end, keys.end) : keys.end;
            any = true;
        }
        const int32_t unit = c_.batch_invariant ? kSegmentKeys / c_.block_n : 1;
        int32_t block = w.block_begin, smallest = 0x7fffffff, largest = 0;
        for (int32_t split = 0; split < w.num_splits; ++split, ++next) {
            const bool more = next < sorted_.size();
            const WorkItem& x = items_[sorted_[more ? next : 0]];
            if (!fault_.require(more && x.seq == seq && x.row_begin == w.row_begin && x.row_end == w.row_end &&
                                    x.split == split && x.num_splits == w.num_splits && x.tile == tile &&
                                    x.split_tile == w.split_tile && x.partial_row == w.partial_row &&
                                    x.block_begin == block,
                                "sequence ", seq, ", tile ", tile, ": split ", split, " of ", w.num_splits,
                                " is not there, or does not go on where the last one ends"))
                return false;
            block = x.block_end;
            const bool is_last = split == w.num_splits - 1;
            fault_.require(is_last || block % unit == 0, "sequence ", seq, ", tile ", tile, ": split ", split,
                           " ends at block ", block, ", not at a multiple of ", unit);
            const int32_t units = segments(x.block_begin, block, unit);
            smallest = std::min(smallest, units);
            largest = std::max(largest, units);
        }
        fault_.require(largest - smallest <= 1, "sequence ", seq, ", tile ", tile, ": splits of ", smallest, " and ",
                       largest, " times ", unit, " blocks");
        const bool exact = any ? w.block_begin == seen.begin / c_.block_n && block == (seen.end - 1) / c_.block_n + 1
                               : w.block_begin == block;
        return fault_.require(exact, "sequence ", seq, ", tile ", tile, ": blocks ", w.block_begin, ", ", block,
                              " for keys ", seen.begin, ", ", seen.end);
    }

    static int32_t segments(int32_t begin, int32_t end, int32_t unit) {
        return begin < end ? (end - 1) / unit - begin / unit + 1 : 0;
    }

    // Blocks and segments of each item's whole tile.
    bool measure_tiles() {
        tile_blocks_.resize(header_.num_items);
        tile_segments_.resize(header_.num_items);
        const int32_t unit = c_.batch_invariant ? kSegmentKeys / c_.block_n : 1;
        for (size_t first = 0; first < sorted_.size();) {
            const WorkItem& w = items_[sorted_[first]];
            const int32_t end = items_[sorted_[first + w.num_splits - 1]].block_end;
            for (int32_t s = 0; s < w.num_splits; ++s, ++first) {
                tile_blocks_[sorted_[first]] = end - w.block_begin;
                tile_segments_[sorted_[first]] = segments(w.block_begin, end, unit);
            }
        }
        return true;
    }

    // Split tiles have counters and rows of partial results of their own, within the workspace.
    bool check_partials() {
        const int64_t counters = kArrivalCounters / c_.num_heads_kv, workspace_rows = workspace_layout(c_).partial_rows;
        std::vector<bool> counter_used(counters), row_used(workspace_rows);
        int64_t tiles = 0, rows = 0;
        for (int32_t i = 0; i < header_.num_items; ++i) {
            const WorkItem& w = items_[i];
            if (w.num_splits == 1 || w.split != 0) continue;
            ++tiles;
            const int64_t slots = c_.batch_invariant ? tile_segments_[i] : w.num_splits;
            rows += slots * (w.row_end - w.row_begin);
            const int64_t end = w.partial_row + slots * (w.row_end - w.row_begin);
            if (!fault_.require(w.split_tile >= 0 && w.split_tile < counters && !counter_used[w.split_tile], "item ", i,
                                ": counter ", w.split_tile, " is another tile's, or none") ||
                !fault_.require(w.partial_row >= 0 && end <= workspace_rows, "item ", i, ": partial rows ",
                                w.partial_row, ", ", end))
                return false;
            counter_used[w.split_tile] = true;
            for (int64_t row = w.partial_row; row < end; ++row) {
                if (!fault_.require(!row_used[row], "item ", i, ": partial row ", row, " is another tile's"))
                    return false;
                row_used[row] = true;
            }
        }
        fault_.require(rows == header_.num_partial_rows, "num_partial_rows: ", header_.num_partial_rows, " for ", rows);
        return fault_.require(tiles == header_.num_split_tiles, "num_split_tiles: ", header_.num_split_tiles, " for ",
                              tiles);
    }

    // Sorted by key, ties in order of (sequence, tile, split).
    bool check_order() {
        auto key = [&](int32_t i) {
            const WorkItem& w = items_[i];
            const int32_t largest = largest_piece(tile_shape(c_), tile_blocks_[i], tile_segments_[i], w.num_splits);
            return order_key(costs_, is_decode(w), largest);
        };
        for (int32_t i = 1; i < header_.num_items; ++i)
            if (!fault_.require(key(i - 1) < key(i) || (key(i - 1) == key(i) && precedes(i - 1, i)), "items ", i - 1,
                                " and ", i, ": out of order"))
                return false;
        return true;
    }

    const PlanConfig& c_;
    const CostModel& costs_;
    int32_t group_;
    uint32_t length_status_;
    std::vector<SequenceShape> seqs_;
    PlanHeader header_;
    const WorkItem* items_;
    std::vector<int32_t> tile_blocks_, tile_segments_;
    std::vector<int32_t> sorted_;  // item indices by (sequence, first row, split)
    Fault fault_;
};

}  // namespace

std::string find_plan_fault(const PlanConfig& config, const CostModel& costs, const SequenceLengths& lengths,
                            const void* plan) {
    return Proof(config, costs, lengths, plan).run();
}

}  // namespace varattn

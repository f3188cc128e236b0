// Boxes of K and V, which the copy engine takes.
#pragma once

#include "device/tma.cuh"
#include "sm90/config.h"

namespace varattn::sm90 {

// Where a KV box starts: page (or num_pages: the copy engine fills with zeros) and row in the page.
struct BoxStart {
    int32_t page, row;
};

// The same of a whole box: key and unit. In pages, boxes start with a unit, and packed ones anywhere.
struct WholeBox {
    int32_t row, unit;
};
__device__ __forceinline__ WholeBox whole_box(const LaunchParams& p, const KvMaps& maps, BoxStart start) {
    if (!p.a.block_table) return {start.row, 0};
    return {0, start.page * maps.page_units + start.row / kUnitKeys};
}

}  // namespace varattn::sm90

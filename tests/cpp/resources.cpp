// Prints the table of what each instance of the Hopper kernel takes, from what ptxas said when it was built
// (cmake/keep_ptxas_info.sh); given a file, compares the table with it. `make resources` writes the file again.
#include <fstream>
#include <iostream>
#include <regex>
#include <sstream>
#include <string>

#include "sm90/config.h"

namespace {

constexpr int kSkipped = 77;  // as tests/cpp/CMakeLists.txt has it

std::string read(const std::string& path) {
    std::ifstream file(path);
    std::ostringstream text;
    text << file.rdbuf();
    return text.str();
}

// The sum of the numbers in all places of `text` that have this form, one for the kernel and one for each function that it
// calls; "?" if there is no place.
std::string sum(const std::string& text, const char* form) {
    const std::regex regex(form);
    const std::sregex_iterator end;
    long total = 0;
    bool found = false;
    for (std::sregex_iterator it(text.begin(), text.end(), regex); it != end; ++it, found = true)
        total += std::stol((*it)[1]);
    return found ? std::to_string(total) : "?";
}

template <int kDim, bool kFoldsSegments = false>
void add_row(std::ostream& out, const char* dtype) {
    using namespace varattn::sm90;
    const std::string name = std::string(dtype) + "_d" + std::to_string(kDim) + (kFoldsSegments ? "_folding" : "");
    const std::string info = read(std::string(VARATTN_INSTANCES) + "/" + name + ".cu.o.ptxas");
    // Elements of both types have 2 bytes; the launch adds room to align the struct.
    const size_t shared_bytes = sizeof(SharedMemory<Config<uint16_t, kDim, kFoldsSegments>>) + 1024;
    out << name << " | " << sum(info, "Used ([0-9]+) registers") << " | " << sum(info, "([0-9]+) bytes stack frame")
        << " | " << sum(info, "([0-9]+) bytes spill stores") << " | " << sum(info, "([0-9]+) bytes spill loads")
        << " | " << shared_bytes << "\n";
}

}  // namespace

int main(int argc, char** argv) {
    std::ostringstream out;
    const std::string compiler = "nvcc " VARATTN_NVCC;
    out << "Hopper kernel, " << compiler << ": what each instance takes. `make resources` writes this file.\n"
        << "instance | registers | stack bytes | spill stores, bytes | spill loads, bytes | shared memory, bytes\n";
    for (const char* dtype : {"bf16", "fp16"}) {
        add_row<64>(out, dtype);
        add_row<128>(out, dtype);
        add_row<256>(out, dtype);
        add_row<64, true>(out, dtype);
        add_row<128, true>(out, dtype);
        add_row<256, true>(out, dtype);
    }
    if (argc < 2) {
        std::cout << out.str();
        return out.str().find('?') != std::string::npos;
    }
    const std::string committed = read(argv[1]);
    if (committed == out.str()) return 0;
    if (committed.find(compiler + ":") == std::string::npos) {
        std::cout << "skipped: " << argv[1] << " is not of " << compiler << "\n";
        return kSkipped;
    }
    std::cout << argv[1] << " has\n"
              << committed << "\nthis build has\n"
              << out.str() << "\nIf that is meant: `make resources`.\n";
    return 1;
}

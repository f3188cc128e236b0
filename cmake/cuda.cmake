# The CUDA part of varattn_objects. Sets VARATTN_HAS_CUDA.
set(VARATTN_HAS_CUDA OFF)
if(NOT VARATTN_CUDA STREQUAL OFF)
  include(CheckLanguage)
  check_language(CUDA)
  if(CMAKE_CUDA_COMPILER)
    set(VARATTN_HAS_CUDA ON)
  elseif(VARATTN_CUDA STREQUAL ON)
    message(FATAL_ERROR "varattn: VARATTN_CUDA is ON, but no nvcc was found: put it on PATH or set CMAKE_CUDA_COMPILER")
  endif()
endif()

if(NOT VARATTN_HAS_CUDA)
  message(STATUS "varattn: no CUDA (VARATTN_CUDA=${VARATTN_CUDA}): the library has the CPU part alone")
  target_sources(varattn_objects PRIVATE csrc/core/no_cuda.cpp)
  return()
endif()

set(CMAKE_CUDA_ARCHITECTURES OFF) # each file has its own: see varattn_cuda_sources
enable_language(CUDA)
if(NOT CMAKE_CUDA20_STANDARD_COMPILE_OPTION) # CMake before 3.26 does not know that nvcc 12 speaks it
  set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION -std=c++20)
endif()
set_target_properties(varattn_objects PROPERTIES CUDA_STANDARD 20 CUDA_STANDARD_REQUIRED ON CUDA_EXTENSIONS OFF
                                                 CUDA_ARCHITECTURES OFF CUDA_VISIBILITY_PRESET hidden)
find_package(CUDAToolkit 12.0 REQUIRED)
message(STATUS "varattn: CUDA ${CUDAToolkit_VERSION}")
target_link_libraries(varattn_objects PUBLIC CUDA::cudart_static)
target_compile_options(varattn_objects PRIVATE $<$<COMPILE_LANGUAGE:CUDA>:-O3 -lineinfo>)

set(launcher ${CMAKE_CURRENT_LIST_DIR}/keep_ptxas_info.sh ${CMAKE_CUDA_COMPILER_LAUNCHER})
set_target_properties(varattn_objects PROPERTIES CUDA_COMPILER_LAUNCHER "${launcher}")

# Machine code for the chips that a file is written for. `portable` files run on 8.0 and up: PTX serves newer chips.
function(varattn_cuda_sources kind)
  if(kind STREQUAL portable)
    set(targets --generate-code=arch=compute_80,code=[sm_80] --generate-code=arch=compute_90,code=[sm_90,compute_90])
  elseif(kind STREQUAL sm90)
    set(targets --generate-code=arch=compute_90a,code=[sm_90a] -Xptxas=-v) # see keep_ptxas_info.sh
  endif()
  set_source_files_properties(${ARGN} PROPERTIES COMPILE_OPTIONS "${targets}")
  target_sources(varattn_objects PRIVATE ${ARGN})
endfunction()

target_sources(varattn_objects PRIVATE csrc/cuda/attention.cpp csrc/cuda/device_info.cpp csrc/portable/launch.cpp
                                       csrc/sm90/launch.cpp csrc/sm90/launch_params.cpp)
varattn_cuda_sources(
  portable
  csrc/cuda/planner.cu
  csrc/portable/instances/bf16_d64.cu
  csrc/portable/instances/bf16_d128.cu
  csrc/portable/instances/bf16_d256.cu
  csrc/portable/instances/fp16_d64.cu
  csrc/portable/instances/fp16_d128.cu
  csrc/portable/instances/fp16_d256.cu)
varattn_cuda_sources(
  sm90
  csrc/sm90/instances/bf16_d64.cu
  csrc/sm90/instances/bf16_d64_folding.cu
  csrc/sm90/instances/bf16_d128.cu
  csrc/sm90/instances/bf16_d128_folding.cu
  csrc/sm90/instances/bf16_d256.cu
  csrc/sm90/instances/bf16_d256_folding.cu
  csrc/sm90/instances/fp16_d64.cu
  csrc/sm90/instances/fp16_d64_folding.cu
  csrc/sm90/instances/fp16_d128.cu
  csrc/sm90/instances/fp16_d128_folding.cu
  csrc/sm90/instances/fp16_d256.cu
  csrc/sm90/instances/fp16_d256_folding.cu)

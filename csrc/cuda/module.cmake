# The module _cuda: each kernel family compiled for the architectures that have its instructions, and no others.
# One line a family: csrc/cuda/<name>.cu and its architectures (-real: machine code, -virtual: PTX for later GPUs).
if(NOT CMAKE_CUDA_COMPILER)
  set(CMAKE_CUDA_COMPILER ${QK_NVCC})
endif()
set(CMAKE_CUDA_ARCHITECTURES 80) # of CMake's own trial program
enable_language(CUDA)
option(QKERNELS_CUDA_ALL "Machine code for every architecture" OFF)

function(cuda_family name)
  cmake_parse_arguments(of "" "" "USUALLY;ALL" ${ARGN})
  add_library(cuda_${name} OBJECT csrc/cuda/${name}.cu)
  if(QKERNELS_CUDA_ALL)
    set(of_USUALLY ${of_ALL})
  endif()
  # -fmad=false: a fused multiply-add rounds once where the specification rounds twice.
  target_compile_options(cuda_${name} PRIVATE $<$<COMPILE_LANGUAGE:CUDA>:-O3 -fmad=false -Xcompiler=-ffp-contract=off -Xfatbin=-compress-all>)
  set_target_properties(cuda_${name} PROPERTIES CUDA_ARCHITECTURES "${of_USUALLY}" CUDA_STANDARD 17
                        CUDA_RUNTIME_LIBRARY Static CUDA_VISIBILITY_PRESET hidden)
  target_link_libraries(_cuda PRIVATE cuda_${name})
endfunction()

pybind11_add_module(_cuda MODULE NO_EXTRAS csrc/cuda/bindings.cpp csrc/cuda/bind_conv.cpp csrc/cuda/bind_weights.cpp)
set_target_properties(_cuda PROPERTIES CUDA_RUNTIME_LIBRARY Static)
set(later 80-real 86-real 89-real 90-real 100-real 103-real 110-real 120-real 121-real 80-virtual)
cuda_family(gemm_sm75  USUALLY 75-real                    ALL 75-real)
cuda_family(gemm_sm80  USUALLY 80-real 80-virtual         ALL ${later})
cuda_family(gemm_sm90a USUALLY 90a-real                   ALL 90a-real)
cuda_family(general    USUALLY 75-real 80-real 75-virtual ALL 75-real ${later})
cuda_family(conv_sm80   USUALLY 80-real 80-virtual        ALL ${later})
cuda_family(conv_general USUALLY 75-real 80-real 75-virtual ALL 75-real ${later})
cuda_family(codes_sm80  USUALLY 80-real 80-virtual        ALL ${later})
cuda_family(halves_sm80 USUALLY 80-real 80-virtual        ALL ${later})
cuda_family(weights    USUALLY 75-real 80-real 75-virtual ALL 75-real ${later})
cuda_family(weight_rows USUALLY 75-real                   ALL 75-real)
cuda_family(rows       USUALLY 75-real                    ALL 75-real)
cuda_family(device     USUALLY 75-real                    ALL 75-real)
install(TARGETS _cuda DESTINATION qkernels)

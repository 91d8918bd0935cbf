// engine MODEL THREADS: for each line "INPUT OUTPUT ROUNDS" on standard input, the network runs on the codes in file
// INPUT, ROUNDS times; they are written to OUTPUT, and the median time of a run, in nanoseconds, to standard output.
#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <exception>
#include <fstream>
#include <iostream>

#include "network.h"

int main(int argc, char** argv) {
  if (argc != 3) {
    std::cerr << "usage: engine MODEL THREADS\n";
    return 2;
  }
  try {
    Network network(argv[1], std::max(1, atoi(argv[2])));
    network.describe(stderr);
    std::vector<uint8_t> input(network.inputs()), output(network.outputs());
    std::string from, to;
    for (int rounds; std::cin >> from >> to >> rounds;) {
      std::ifstream(from, std::ios::binary).read(reinterpret_cast<char*>(input.data()), std::streamsize(input.size()));
      std::vector<long long> times(size_t(std::max(rounds, 1)));
      for (long long& time : times) {
        const auto start = std::chrono::steady_clock::now();
        network.run(input.data(), output.data());
        time = std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now() - start).count();
      }
      std::nth_element(times.begin(), times.begin() + long(times.size() / 2), times.end());
      std::ofstream(to, std::ios::binary)
          .write(reinterpret_cast<const char*>(output.data()), std::streamsize(output.size()));
      std::cout << times[times.size() / 2] << std::endl;
    }
    return 0;
  } catch (const std::exception& error) {
    std::cerr << "engine: " << error.what() << "\n";
    return 1;
  }
}

// Features of pictures by a bundle's encoder.onnx, in C++17 with onnxruntime alone.
//
//   cmake -S . -B build && cmake --build build
//   build/extract bundle pictures/ more.ppm > features.csv
//
// Reads binary PPM (P6) and PGM (P5) files of 8 bits. The encoder gets exactly the same pixels as
// in runtime.py: the resize is Pillow 13's bicubic one, to the bit. Replace `read_picture` by code
// that reads your camera. Exit status: 0 success; 1 some pictures could not be read; 2 wrong usage,
// or the features cannot be written.

#include <onnxruntime_cxx_api.h>

#include <algorithm>
#include <array>
#include <cctype>
#include <cerrno>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <exception>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace fs = std::filesystem;
using Bytes = std::vector<std::uint8_t>;

struct Picture {
  std::size_t height, width, channels;
  Bytes values;  // (height, width, channels), channels innermost
};

struct Unreadable : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// --- Reading -------------------------------------------------------------------------------------

// Reads the next number of a PNM header; comments go from # to the end of the line.
std::size_t header_number(const Bytes& data, std::size_t& at) {
  while (at < data.size() && (std::isspace(data[at]) || data[at] == '#')) {
    if (data[at++] == '#') {
      while (at < data.size() && data[at] != '\n') ++at;
    }
  }
  std::size_t number = 0, digits = 0;
  for (; at < data.size() && std::isdigit(data[at]) && digits < 9; ++at, ++digits) {
    number = 10 * number + (data[at] - '0');
  }
  if (digits == 0) throw Unreadable("broken header");
  return number;
}

Picture read_picture(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file || fs::is_directory(path)) throw Unreadable("cannot be opened");
  const Bytes data{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
  if (data.size() < 2 || data[0] != 'P' || (data[1] != '5' && data[1] != '6')) {
    throw Unreadable("not a binary PPM or PGM file (P6, P5)");
  }
  std::size_t at = 2;
  const std::size_t width = header_number(data, at), height = header_number(data, at);
  const std::size_t brightest = header_number(data, at), channels = data[1] == '5' ? 1 : 3;
  if (brightest != 255) throw Unreadable("white is " + std::to_string(brightest) + ", not 255");
  if (width == 0 || height == 0) throw Unreadable("no pixels");
  ++at;  // the single whitespace after the header
  const std::uint64_t wanted = std::uint64_t{width} * height * channels;
  if (at > data.size() || data.size() - at < wanted) throw Unreadable("cut short");
  const auto begin = data.begin() + static_cast<std::ptrdiff_t>(at);
  return {height, width, channels, Bytes(begin, begin + static_cast<std::ptrdiff_t>(wanted))};
}

// Gray to RGB by repetition, RGB to gray by luma (ITU-R BT.601).
Picture to_channels(const Picture& picture, std::size_t channels) {
  if (picture.channels == channels) return picture;
  Picture made{picture.height, picture.width, channels, {}};
  made.values.reserve(picture.height * picture.width * channels);
  for (std::size_t i = 0; i < picture.values.size(); i += picture.channels) {
    const std::uint8_t* v = &picture.values[i];
    if (channels == 3) {
      made.values.insert(made.values.end(), 3, v[0]);
    } else {
      const float luma = v[0] * 0.299F + v[1] * 0.587F + v[2] * 0.114F;
      made.values.push_back(static_cast<std::uint8_t>(std::nearbyint(luma)));
    }
  }
  return made;
}

// --- Resizing ------------------------------------------------------------------------------------

constexpr int kBits = 22;  // as in Pillow: 32 bits, less 8 for the value and 2 for overshoot

// Keys' cubic kernel with a = -0.5.
double cubic(double x) {
  x = std::fabs(x);
  if (x < 1) return (1.5 * x - 2.5) * x * x + 1;
  if (x < 2) return (((x - 5) * x + 8) * x - 4) * -0.5;
  return 0;
}

// The old values of a line that one new value is computed from, with fixed-point weights.
struct Taps {
  std::size_t first;
  std::vector<std::int32_t> weights;
};

Taps taps_of(std::size_t place, std::size_t from, std::size_t to) {
  const double scale = static_cast<double>(from) / static_cast<double>(to);
  const double stretch = std::max(scale, 1.0), reach = 2 * stretch, narrow = 1 / stretch;
  const double centre = (static_cast<double>(place) + 0.5) * scale;
  const long first = std::max(0L, static_cast<long>(centre - reach + 0.5));
  const long end = std::min(static_cast<long>(from), static_cast<long>(centre + reach + 0.5));
  std::vector<double> exact;
  double sum = 0;
  for (long x = first; x < end; ++x) {
    exact.push_back(cubic((static_cast<double>(x) - centre + 0.5) * narrow));
    sum += exact.back();
  }
  Taps taps{static_cast<std::size_t>(first), {}};
  for (const double weight : exact) {
    const double fixed = weight / sum * (1 << kBits);
    taps.weights.push_back(static_cast<std::int32_t>(fixed + (fixed < 0 ? -0.5 : 0.5)));
  }
  return taps;
}

// Resamples the middle axis of (outer, from, inner) to (outer, to, inner).
Bytes resample(const Bytes& old, std::size_t outer, std::size_t from, std::size_t inner,
               std::size_t to) {
  if (from == to) return old;
  Bytes made(outer * to * inner);
  std::vector<std::int32_t> sums(inner);
  for (std::size_t place = 0; place < to; ++place) {
    const Taps taps = taps_of(place, from, to);
    for (std::size_t o = 0; o < outer; ++o) {
      std::fill(sums.begin(), sums.end(), 1 << (kBits - 1));
      for (std::size_t t = 0; t < taps.weights.size(); ++t) {
        const std::uint8_t* values = &old[(o * from + taps.first + t) * inner];
        for (std::size_t i = 0; i < inner; ++i) sums[i] += taps.weights[t] * values[i];
      }
      for (std::size_t i = 0; i < inner; ++i) {
        const std::int32_t value = std::clamp(sums[i] >> kBits, 0, 255);
        made[(o * to + place) * inner + i] = static_cast<std::uint8_t>(value);
      }
    }
  }
  return made;
}

// Each pass rounds, so their order matters: as in runtime.py and Pillow 13 the height is resized
// first if it shrinks by more pixels than twice those of the width; older ones resize it last.
Picture scale(const Picture& old, std::size_t height, std::size_t width) {
  const std::size_t h = old.height, w = old.width, c = old.channels;
  if (h > height && h + 2 * width > height + 2 * w) {
    const Bytes low = resample(old.values, 1, h, w * c, height);
    return {height, width, c, resample(low, height, w, c, width)};
  }
  const Bytes narrow = resample(old.values, h, w, c, width);
  return {height, width, c, resample(narrow, 1, h, width * c, height)};
}

// Copies a rectangle of (height, width) from one picture to another.
void paste(const Picture& from, std::size_t from_top, std::size_t from_left, Picture& to,
           std::size_t to_top, std::size_t to_left, std::size_t height, std::size_t width) {
  const std::size_t c = from.channels;
  for (std::size_t y = 0; y < height; ++y) {
    std::copy_n(&from.values[((from_top + y) * from.width + from_left) * c], width * c,
                &to.values[((to_top + y) * to.width + to_left) * c]);
  }
}

// Resizes to (size, size); rule is crop (the middle square), pad (with black) or squash.
Picture resize(const Picture& old, std::size_t size, const std::string& rule) {
  const std::size_t h = old.height, w = old.width, c = old.channels;
  if (rule == "crop") {
    const std::size_t keep = std::min(h, w);
    Picture square{keep, keep, c, Bytes(keep * keep * c)};
    paste(old, (h - keep) / 2, (w - keep) / 2, square, 0, 0, keep, keep);
    return scale(square, size, size);
  }
  if (rule != "pad" || h == w) return scale(old, size, size);
  const double ratio = static_cast<double>(size) / static_cast<double>(std::max(h, w));
  const auto shrunk = [ratio](std::size_t side) {
    const double exact = std::nearbyint(static_cast<double>(side) * ratio);
    return static_cast<std::size_t>(std::max(1.0, exact));
  };
  const Picture inside = scale(old, shrunk(h), shrunk(w));
  Picture padded{size, size, c, Bytes(size * size * c)};
  paste(inside, 0, 0, padded, (size - inside.height) / 2, (size - inside.width) / 2, inside.height,
        inside.width);
  return padded;
}

// --- The encoder ---------------------------------------------------------------------------------

class Encoder {
 public:
  explicit Encoder(const fs::path& model) : session_(environment_, model.c_str(), options()) {
    size_ = std::stoul(told("input.size"));
    channels_ = std::stoul(told("input.channels"));
    rule_ = told("input.resize");
    if (told("input.dtype") != "uint8" || (channels_ != 1 && channels_ != 3)) {
      throw std::runtime_error("the encoder takes " + told("input.dtype") + " pictures of " +
                               told("input.channels") + " channels; here only uint8 of 1 or 3");
    }
  }

  std::vector<float> features(const Picture& picture) {
    Picture taken = resize(to_channels(picture, channels_), size_, rule_);
    const auto side = static_cast<std::int64_t>(size_);
    const std::array<std::int64_t, 4> shape{1, side, side, static_cast<std::int64_t>(channels_)};
    const auto memory = Ort::MemoryInfo::CreateCpu(OrtDeviceAllocator, OrtMemTypeDefault);
    const auto input = Ort::Value::CreateTensor<std::uint8_t>(
        memory, taken.values.data(), taken.values.size(), shape.data(), shape.size());
    const std::array<const char*, 1> inputs{"pictures"}, outputs{"features"};
    const auto found =
        session_.Run(Ort::RunOptions{}, inputs.data(), &input, 1, outputs.data(), outputs.size());
    const float* begin = found[0].GetTensorData<float>();
    return {begin, begin + found[0].GetTensorTypeAndShapeInfo().GetElementCount()};
  }

 private:
  static Ort::SessionOptions options() {
    Ort::SessionOptions made;
    made.SetGraphOptimizationLevel(ORT_ENABLE_ALL);
    return made;
  }

  // A value of the model's metadata, as written by tinyssl export.
  std::string told(const char* key) {
    Ort::AllocatorWithDefaultOptions allocator;
    const auto value = session_.GetModelMetadata().LookupCustomMetadataMapAllocated(key, allocator);
    if (!value) throw std::runtime_error(std::string("the model has no metadata for ") + key);
    return value.get();
  }

  Ort::Env environment_{ORT_LOGGING_LEVEL_ERROR, "extract"};
  Ort::Session session_;
  std::size_t size_ = 0, channels_ = 0;
  std::string rule_;
};

// --- The program ---------------------------------------------------------------------------------

// The named file, or all pictures below a folder in order; hidden ones are skipped.
std::vector<fs::path> find_pictures(const fs::path& place) {
  if (!fs::is_directory(place)) return {place};
  std::vector<fs::path> found;
  for (fs::recursive_directory_iterator entry(place), end; entry != end; ++entry) {
    const std::string name = entry->path().filename();
    std::string suffix = entry->path().extension();
    std::transform(suffix.begin(), suffix.end(), suffix.begin(), ::tolower);
    if (name[0] == '.') {
      entry.disable_recursion_pending();
    } else if (suffix == ".ppm" || suffix == ".pgm") {
      found.push_back(entry->path());
    }
  }
  if (found.empty()) throw std::runtime_error("no .ppm or .pgm in " + place.string());
  std::sort(found.begin(), found.end());
  return found;
}

// A CSV field: quoted, with quotes doubled, if it contains a separator, quote or line break.
std::string quoted(const std::string& text) {
  if (text.find_first_of(",\"\r\n") == std::string::npos) return text;
  std::string made = "\"";
  for (const char letter : text) made += letter == '"' ? "\"\"" : std::string(1, letter);
  return made + '"';
}

void print_head(std::size_t width) {
  std::printf("path");
  for (std::size_t i = 0; i < width; ++i) std::printf(",feature%zu", i);
  std::printf("\n");
}

void print_row(const fs::path& path, const std::vector<float>& features) {
  std::printf("%s", quoted(path.string()).c_str());
  for (const float value : features) std::printf(",%.9g", static_cast<double>(value));
  std::printf("\n");
  if (std::fflush(stdout) != 0 || std::ferror(stdout) != 0) {
    throw std::runtime_error("cannot write the features: " + std::string(std::strerror(errno)));
  }
}

int extract(const fs::path& bundle, const std::vector<fs::path>& places) {
  Encoder encoder(fs::is_directory(bundle) ? bundle / "encoder.onnx" : bundle);
  int status = 0;
  bool first = true;
  for (const fs::path& place : places) {
    for (const fs::path& path : find_pictures(place)) {
      try {
        const std::vector<float> features = encoder.features(read_picture(path));
        if (std::exchange(first, false)) print_head(features.size());
        print_row(path, features);
      } catch (const Unreadable& reason) {
        std::fprintf(stderr, "extract: %s: %s\n", path.c_str(), reason.what());
        status = 1;
      }
    }
  }
  return status;
}

int main(int count, char** arguments) {
  if (count < 3) {
    std::fprintf(stderr, "usage: extract BUNDLE PICTURES... > features.csv\n");
    return 2;
  }
  if (OrtGetApiBase()->GetApi(ORT_API_VERSION) == nullptr) {
    std::fprintf(stderr, "extract: onnxruntime %s is older than the headers of this program\n",
                 OrtGetApiBase()->GetVersionString());
    return 2;
  }
  try {
    return extract(arguments[1], {arguments + 2, arguments + count});
  } catch (const std::exception& error) {
    std::fprintf(stderr, "extract: %s\n", error.what());
    return 2;
  }
}

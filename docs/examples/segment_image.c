/* Segments an image with an exported model through TensorFlow's C API: no Python, no TF Serving.

   usage: segment_image EXPORT_DIR IMAGE.jpg [MAP.ppm]

   Prints one line for each segment: id, class id, score, area, left, top, width, height (pixels). MAP.ppm receives
   the panoptic map with ids as colors: id = red + 256 green + 65536 blue, as in COCO's PNGs.

   Build, with TensorFlow's Python wheel or its C library unpacked at $TF (in the wheel: the folder tensorflow/):

     cc -O2 -I$TF/include segment_image.c -o segment_image $TF/libtensorflow_cc.so.2 $TF/libtensorflow_framework.so.2 \
        -Wl,-rpath,$TF */

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tensorflow/c/c_api.h"
#include "tensorflow/c/tf_tstring.h"

#define SIGNATURE "serving_default"
#define MAX_NAME 256

enum { PANOPTIC_MAP, NUM_SEGMENTS, SEGMENT_IDS, CLASS_IDS, SCORES, AREAS, BOXES, NUM_OUTPUTS };
static const char* const kOutputs[NUM_OUTPUTS] = {"panoptic_map",   "num_segments",  "segment_ids",  "segment_class_ids",
                                                  "segment_scores", "segment_areas", "segment_boxes"};

static void fail(const char* what, const char* why) {
  fprintf(stderr, "segment_image: %s: %s\n", what, why);
  exit(1);
}

static void check(const TF_Status* status, const char* what) {
  if (TF_GetCode(status) != TF_OK) fail(what, TF_Message(status));
}

/* Tensors have different names in the graph and in the signature. The MetaGraphDef, a protocol buffer, maps them. The
   functions below read the parts of its wire format that are needed for this. */

typedef struct {
  const uint8_t *at, *end;
} Bytes;

static uint64_t read_varint(Bytes* bytes) {
  uint64_t value = 0;
  for (int shift = 0; shift < 64 && bytes->at < bytes->end; shift += 7) {
    uint8_t byte = *bytes->at++;
    value |= (uint64_t)(byte & 0x7f) << shift;
    if (byte < 0x80) return value;
  }
  fail("MetaGraphDef", "damaged");
  return 0;
}

/* Finds the next field with this number that is a message, string or bytes. Returns 0 at the end of the message. */
static int next_field(Bytes* message, unsigned number, Bytes* field) {
  while (message->at < message->end) {
    uint64_t tag = read_varint(message), size = 0;
    switch (tag & 7) {
      case 0: read_varint(message); break;
      case 1: size = 8; break;
      case 2: size = read_varint(message); break;
      case 5: size = 4; break;
      default: fail("MetaGraphDef", "damaged");
    }
    if (size > (uint64_t)(message->end - message->at)) fail("MetaGraphDef", "damaged");
    field->at = message->at;
    field->end = message->at += size;
    if ((tag & 7) == 2 && tag >> 3 == number) return 1;
  }
  return 0;
}

/* Finds the value of a key in a map<string, message>, which is encoded as repeated {key = 1, value = 2}. */
static int find_in_map(Bytes message, unsigned number, const char* key, Bytes* value) {
  Bytes entry, name;
  while (next_field(&message, number, &entry)) {
    Bytes rest = entry;
    if (next_field(&rest, 1, &name) && (size_t)(name.end - name.at) == strlen(key) &&
        memcmp(name.at, key, strlen(key)) == 0)
      return next_field(&entry, 2, value);
  }
  return 0;
}

/* Finds a tensor of the signature in the graph: MetaGraphDef.signature_def = 5, SignatureDef.inputs = 1 and
   outputs = 2, TensorInfo.name = 1, in the form "operation:index". */
static TF_Output find_tensor(const TF_Buffer* meta_graph, TF_Graph* graph, unsigned inputs_or_outputs, const char* key) {
  Bytes message = {meta_graph->data, (const uint8_t*)meta_graph->data + meta_graph->length};
  Bytes signature, info, name;
  if (!find_in_map(message, 5, SIGNATURE, &signature)) fail("no signature", SIGNATURE);
  if (!find_in_map(signature, inputs_or_outputs, key, &info) || !next_field(&info, 1, &name))
    fail("the signature lacks", key);
  char text[MAX_NAME];
  snprintf(text, sizeof text, "%.*s", (int)(name.end - name.at), (const char*)name.at);
  char* colon = strrchr(text, ':');
  if (colon) *colon = '\0';
  TF_Output output = {TF_GraphOperationByName(graph, text), colon ? atoi(colon + 1) : 0};
  if (!output.oper) fail("the graph lacks", text);
  return output;
}

static char* read_file(const char* path, size_t* size) {
  FILE* file = fopen(path, "rb");
  if (!file || fseek(file, 0, SEEK_END)) fail(path, "cannot be read");
  long length = ftell(file);
  rewind(file);
  char* content = malloc(length > 0 ? length : 1);
  if (length < 0 || !content || fread(content, 1, length, file) != (size_t)length) fail(path, "cannot be read");
  fclose(file);
  *size = length;
  return content;
}

static void free_string(void* data, size_t length, void* argument) {
  (void)length, (void)argument;
  TF_StringDealloc(data);
  free(data);
}

/* Makes a string tensor of shape [1], whose element is a TF_TString. */
static TF_Tensor* string_tensor(const char* content, size_t size) {
  TF_TString* string = malloc(sizeof *string);
  if (!string) fail("memory", "used up");
  TF_StringInit(string);
  TF_StringCopy(string, content, size);
  const int64_t shape[] = {1};
  return TF_NewTensor(TF_STRING, shape, 1, string, sizeof *string, free_string, NULL);
}

static void write_map(const char* path, const TF_Tensor* map) {
  const int64_t height = TF_Dim(map, 1), width = TF_Dim(map, 2);
  const int32_t* id = TF_TensorData(map);
  FILE* file = fopen(path, "wb");
  if (!file) fail(path, "cannot be written");
  fprintf(file, "P6 %lld %lld 255\n", (long long)width, (long long)height);
  for (int64_t pixel = 0; pixel < height * width; ++pixel) {
    const uint8_t color[] = {id[pixel] & 255, id[pixel] >> 8 & 255, id[pixel] >> 16 & 255};
    fwrite(color, 1, sizeof color, file);
  }
  if (ferror(file) | fclose(file)) fail(path, "cannot be written");
}

int main(int argc, char** argv) {
  if (argc < 3 || argc > 4) {
    fprintf(stderr, "usage: segment_image EXPORT_DIR IMAGE [MAP.ppm]\n");
    return 2;
  }
  size_t size;
  char* content = read_file(argv[2], &size);

  TF_Status* status = TF_NewStatus();
  TF_Graph* graph = TF_NewGraph();
  TF_Buffer* meta_graph = TF_NewBuffer();
  TF_SessionOptions* options = TF_NewSessionOptions();
  const char* tags[] = {"serve"};
  TF_Session* session = TF_LoadSessionFromSavedModel(options, NULL, argv[1], tags, 1, graph, meta_graph, status);
  check(status, argv[1]);

  TF_Output input = find_tensor(meta_graph, graph, 1, "image_bytes"), outputs[NUM_OUTPUTS];
  for (int n = 0; n < NUM_OUTPUTS; ++n) outputs[n] = find_tensor(meta_graph, graph, 2, kOutputs[n]);
  TF_Tensor *image = string_tensor(content, size), *result[NUM_OUTPUTS] = {NULL};
  TF_SessionRun(session, NULL, &input, &image, 1, outputs, result, NUM_OUTPUTS, NULL, 0, NULL, status);
  check(status, argv[2]);

  /* The batch has one image. The tables have more rows than segments. */
  const int32_t *ids = TF_TensorData(result[SEGMENT_IDS]), *class_ids = TF_TensorData(result[CLASS_IDS]),
                *areas = TF_TensorData(result[AREAS]), *boxes = TF_TensorData(result[BOXES]);
  const float* scores = TF_TensorData(result[SCORES]);
  const int32_t num_segments = *(const int32_t*)TF_TensorData(result[NUM_SEGMENTS]);
  for (int32_t n = 0; n < num_segments; ++n) {
    const int32_t* box = boxes + 4 * n;
    printf("%d %d %.6f %d %d %d %d %d\n", ids[n], class_ids[n], scores[n], areas[n], box[0], box[1], box[2], box[3]);
  }
  if (argc == 4) write_map(argv[3], result[PANOPTIC_MAP]);

  for (int n = 0; n < NUM_OUTPUTS; ++n) TF_DeleteTensor(result[n]);
  TF_DeleteTensor(image);
  TF_CloseSession(session, status);
  TF_DeleteSession(session, status);
  TF_DeleteSessionOptions(options);
  TF_DeleteBuffer(meta_graph);
  TF_DeleteGraph(graph);
  TF_DeleteStatus(status);
  free(content);
  return 0;
}

/* A role in C: `hello` greets. Copy this file to begin a plugin of your own.
 *
 *   cc -shared -fPIC -O2 -I../../../plugin-api/abi/include -o libhello.so hello.c
 *
 * With libhello.so in a plugin folder of station cam-1, and `[station.cam-1.roles.hello.main]`, `greeting = "Hello"` in the
 * fleet file, `quiltctl call cam-1/hello/main greet '{"name":"x"}'` says "Hello, x!".
 *
 * The rules are in quilt_plugin.h. Three matter most: answer each completion exactly once, give back each QuiltBuf that you
 * are given, and expect calls on any thread. */
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include "quilt_plugin.h"

enum { GREET = 1, CHEER = 2 }; /* The numbers under which the station calls the commands. */
typedef char Text[81];         /* A greeting or a name. */
#define SCHEMA(key) "{\"type\":\"object\",\"required\":[\"" key "\"],\"additionalProperties\":false,\"properties\":{\"" key \
    "\":{\"type\":\"string\",\"minLength\":1,\"maxLength\":80}}}"
/* The fingerprint tells who may send bincode. This is nobody's, so all that arrives is JSON. */
#define COMMAND(name, doc, streaming) "{\"group\":\"Hello\",\"name\":\"" name "\",\"doc\":\"" doc "\",\"read\":true," \
    "\"streaming\":" streaming ",\"fingerprint\":[0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0],\"request_schema\":" SCHEMA("name") \
    ",\"reply_schema\":{\"type\":\"string\"},\"error_schema\":{\"type\":\"string\"}}"
#define GREET_RECORD COMMAND("greet", "Greets somebody.", "false")
#define CHEER_RECORD COMMAND("cheer", "Greets somebody three times.", "true")
static const char MANIFEST[] = "{\"name\":\"hello\",\"version\":\"1.0.0\",\"roles\":[{\"name\":\"hello\",\"version\":\"1.0.0\","
    "\"doc\":\"Greets.\",\"instances\":0,\"config_schema\":" SCHEMA("greeting") ",\"commands\":[" GREET_RECORD "," CHEER_RECORD "]}]}";

typedef struct Hello { uint64_t token; unsigned greeted; Text greeting; struct Hello *next; } Hello;
static const QuiltHost *host;
static Hello *instances; /* Those that run. Calls for several come at once, so it is touched only under the lock. */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static Hello **find(uint64_t token) { /* Its place in the list, or the end. */
    Hello **at = &instances;
    for (; *at && (*at)->token != token; at = &(*at)->next) {}
    return at;
}
static QuiltSlice lend(const char *text) { return (QuiltSlice){(const uint8_t *)text, strlen(text)}; }
static void give_back(QuiltBuf buf) { if (buf.release) buf.release(buf.owner); }

/* A text that changes hands: the station gives it back to our `free`. */
static QuiltBuf text(const char *format, ...) {
    char *made = calloc(1, 4 * sizeof(Text));
    if (!made) return (QuiltBuf){0};
    va_list arguments; va_start(arguments, format);
    vsnprintf(made, 4 * sizeof(Text), format, arguments);
    va_end(arguments);
    return (QuiltBuf){(const uint8_t *)made, strlen(made), made, free};
}
static void answer(QuiltCompletion done, uint32_t status, QuiltBuf body) { done.done(done.ctx, status, body); }

/* Takes {"KEY": "TEXT"} and nothing else. For more, or for escapes in it, take a JSON library. */
static bool take_text(QuiltBuf json, const char *key, Text out) {
    char copy[4 * sizeof(Text)] = ""; /* It ends with a zero, which the buffer does not. */
    Text found; int end = 0;
    if (json.len && json.len < sizeof copy) memcpy(copy, json.ptr, json.len);
    give_back(json);
    sscanf(copy, " { \"%80[a-z]\" : \"%80[^\"\\\x01-\x1f]\" } %n", found, out, &end);
    return end > 0 && copy[end] == 0 && strcmp(found, key) == 0;
}
static bool take_greeting(QuiltBuf config, Text out, QuiltCompletion done) {
    bool fine = take_text(config, "greeting", out);
    if (!fine) answer(done, QUILT_INVALID, text("[{\"key\":\"greeting\",\"expected\":\"this key alone, with a text of 1 to 80 "
        "bytes that has no quotes and backslashes\",\"got\":\"something else\"}]"));
    return fine;
}
static uint32_t describe(QuiltBuf *out) {
    *out = (QuiltBuf){(const uint8_t *)MANIFEST, sizeof MANIFEST - 1, NULL, NULL}; /* Constant: nothing to give back. */
    return QUILT_OK;
}
static void validate(QuiltSlice role, QuiltBuf config, QuiltCompletion done) {
    (void)role; /* There is but one. */
    Text greeting;
    if (take_greeting(config, greeting, done)) answer(done, QUILT_OK, (QuiltBuf){0});
}
static void start(uint64_t token, QuiltSlice role, QuiltSlice place, QuiltBuf config, QuiltCompletion done) {
    (void)role, (void)place;
    Text greeting;
    if (!take_greeting(config, greeting, done)) return;
    Hello *hello = calloc(1, sizeof *hello);
    if (!hello) { answer(done, QUILT_FAILED, text("out of memory")); return; }
    hello->token = token, strcpy(hello->greeting, greeting);
    pthread_mutex_lock(&lock);
    hello->next = instances, instances = hello; /* Before its commands: they may be called at once. */
    pthread_mutex_unlock(&lock);
    host->register_(token, GREET, lend(GREET_RECORD));
    host->register_(token, CHEER, lend(CHEER_RECORD));
    host->log(token, QUILT_LOG_INFO, lend("ready to greet"));
    answer(done, QUILT_OK, (QuiltBuf){0});
}
static void update(uint64_t token, QuiltBuf config, QuiltCompletion done) {
    Text greeting;
    if (!take_greeting(config, greeting, done)) return;
    pthread_mutex_lock(&lock);
    Hello *hello = *find(token);
    if (hello) strcpy(hello->greeting, greeting);
    pthread_mutex_unlock(&lock); /* Never answer under a lock: the station may call us from there. */
    answer(done, hello ? QUILT_OK : QUILT_STALE, (QuiltBuf){0});
}
static void stop(uint64_t token, uint32_t detach, QuiltCompletion done) {
    (void)detach; /* Nothing of it outlives the station. */
    pthread_mutex_lock(&lock);
    Hello **at = find(token), *hello = *at;
    if (hello) *at = hello->next;
    pthread_mutex_unlock(&lock);
    free(hello);
    answer(done, QUILT_OK, (QuiltBuf){0});
}
typedef struct { uint64_t stream; int left; QuiltCompletion done; Text greeting, name; } Cheer;
/* Sends the next item once the station has room for it, which is when it calls this. */
static void cheer_on(uint64_t ctx, uint32_t status, QuiltBuf nothing) {
    Cheer *cheer = (Cheer *)(uintptr_t)ctx;
    give_back(nothing);
    if (status == QUILT_OK && cheer->left-- > 0) {
        QuiltBuf item = text("\"%s, %s!\"", cheer->greeting, cheer->name);
        host->send_item(cheer->stream, item, (QuiltCompletion){ctx, cheer_on});
    } else {
        answer(cheer->done, status == QUILT_OK ? QUILT_OK : QUILT_CANCELLED, text("null"));
        free(cheer);
    }
}
static uint64_t call(uint64_t token, uint64_t command, uint64_t stream, uint32_t encoding, QuiltBuf body, QuiltCompletion done) {
    Cheer cheer = {stream, 3, done, "", ""}, *kept;
    char count[16] = "";
    if (!take_text(body, "name", cheer.name) || encoding != QUILT_JSON)
        return answer(done, QUILT_SCHEMA_MISMATCH, text("expected {\"name\": a text of 1 to 80 bytes}")), 0;
    pthread_mutex_lock(&lock);
    Hello *hello = *find(token);
    if (hello) snprintf(count, sizeof count, "%u", ++hello->greeted), strcpy(cheer.greeting, hello->greeting);
    pthread_mutex_unlock(&lock);
    if (!hello) return answer(done, QUILT_STALE, (QuiltBuf){0}), 0;
    host->attribute(token, lend("greeted"), lend(count));
    if (command == GREET) return answer(done, QUILT_OK, text("\"%s, %s!\"", cheer.greeting, cheer.name)), 0;
    if (stream == 0 || !(kept = malloc(sizeof *kept))) return answer(done, QUILT_REFUSED, text("it sends items")), 0;
    *kept = cheer;
    cheer_on((uintptr_t)kept, QUILT_OK, (QuiltBuf){0});
    return 0; /* No handle for `cancel`: whoever takes no more items ends it. */
}
static const QuiltPlugin PLUGIN = {.size = sizeof PLUGIN, .minor = QUILT_MINOR, .describe = describe, .validate = validate,
    .start = start, .update = update, .stop = stop, .call = call}; /* What it lacks is null. */
static uint32_t open(const QuiltHost *station, uint32_t minor, const QuiltPlugin **plugin, QuiltBuf *error) {
    (void)minor, (void)error; /* This one always opens. */
    return host = station, *plugin = &PLUGIN, QUILT_OK;
}
const QuiltEntry quilt_plugin_v1 = {"QUILTPL\1", sizeof quilt_plugin_v1, QUILT_MAJOR, 0, QUILT_MINOR, 0, 0, open};
/* What it is, readable before any of it runs: an ELF note. */
#define NOTE "name=hello\nversion=1.0.0\nabi=1.0-0\npanic=unwind\nrole=hello\n"
__attribute__((used, section(".note.quilt"), aligned(4))) static const struct { uint32_t name_size, text_size, type; char name[8],
    text[(sizeof NOTE + 3) / 4 * 4]; } note = {6, sizeof NOTE - 1, QUILT_NOTE_TYPE, "QUILT", NOTE};

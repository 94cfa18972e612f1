package ollmbridge.client;

import com.google.gson.FieldNamingPolicy;
import com.google.gson.Gson;
import com.google.gson.GsonBuilder;
import com.google.gson.JsonObject;
import io.grpc.ManagedChannel;
import java.io.FileDescriptor;
import java.io.FileOutputStream;
import java.io.PrintStream;
import java.nio.charset.StandardCharsets;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.concurrent.Callable;
import ollmbridge.kit.Kit;

/** Runs the named cases, or all, and prints a line for each. The environment has the bridge's address. */
final class Main {
  private static final Gson JSON =
      new GsonBuilder()
          .setFieldNamingPolicy(FieldNamingPolicy.LOWER_CASE_WITH_UNDERSCORES)
          .serializeNulls()
          .create();

  private Main() {}

  public static void main(String[] named) throws Exception {
    Map<String, String> environment = System.getenv();
    String tlsAddress = environment.get("BRIDGE_TLS_ADDRESS");
    String mtlsAddress = environment.get("BRIDGE_MTLS_ADDRESS");
    ManagedChannel channel = Kit.connect(environment.getOrDefault("BRIDGE_ADDRESS", "127.0.0.1:50051"));
    // System.out uses the locale's encoding, but lines are UTF-8.
    PrintStream out = new PrintStream(new FileOutputStream(FileDescriptor.out), true, StandardCharsets.UTF_8);
    try {
      Cases cases = new Cases(channel);
      Map<String, Callable<Record>> table = new LinkedHashMap<>();
      table.put("unary", cases::unary);
      table.put("stream", cases::stream);
      table.put("tools", cases::tools);
      table.put("ollm_options", cases::ollmOptions);
      table.put("extra_json", cases::extraJson);
      table.put("error", cases::error);
      table.put("large_error", cases::largeError);
      table.put("deadline", cases::deadline);
      table.put("cancel", cases::cancel);
      table.put("retry", cases::retry);
      if (tlsAddress != null) {
        table.put("tls", () -> Cases.tls(tlsAddress));
      }
      if (mtlsAddress != null) {
        table.put("mtls", () -> Cases.mtls(mtlsAddress));
      }
      table.put("health", cases::health);
      table.put("large_answer", cases::largeAnswer);
      table.put("accumulate", Cases::accumulate);
      table.put("failure", Cases::readFailures);
      for (Map.Entry<String, Callable<Record>> entry : table.entrySet()) {
        if (named.length == 0 || List.of(named).contains(entry.getKey())) {
          JsonObject line = JSON.toJsonTree(entry.getValue().call()).getAsJsonObject();
          line.addProperty("case", entry.getKey());
          out.println(JSON.toJson(line));
        }
      }
    } finally {
      channel.shutdownNow();
    }
  }
}

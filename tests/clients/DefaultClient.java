// Java's default HTTP client, which offers an upgrade to HTTP/2 with its first request.
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;

public class DefaultClient {
  public static void main(String[] args) throws Exception {
    HttpClient client = HttpClient.newHttpClient();
    String chat =
        "{\"model\": \"" + args[1] + "\", \"max_tokens\": 5,"
            + " \"messages\": [{\"role\": \"user\", \"content\": \"Hi\"}]}";
    for (String body : new String[] {chat, chat.replace("\"max_tokens\"", "\"stream\": true, \"max_tokens\"")}) {
      HttpRequest request =
          HttpRequest.newBuilder(URI.create(args[0] + "/v1/chat/completions"))
              .header("content-type", "application/json")
              .POST(HttpRequest.BodyPublishers.ofString(body))
              .build();
      HttpResponse<String> answer = client.send(request, HttpResponse.BodyHandlers.ofString());
      if (answer.statusCode() != 200 || !answer.body().contains("\"usage\"") && !answer.body().contains("[DONE]")) {
        throw new AssertionError(answer.statusCode() + " " + answer.body());
      }
    }
  }
}

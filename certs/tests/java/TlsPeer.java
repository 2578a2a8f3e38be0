// A Java client of the kind that storage-sync's keystores are for: JDK TLS, no libraries.
// It connects with keystore.p12 and truststore.p12 of one folder, sends one line, and prints the
// protocol and the line that came back.
//
// java TlsPeer.java HOST PORT FOLDER PASSWORD_FILE PROTOCOL

import java.io.BufferedReader;
import java.io.FileInputStream;
import java.io.InputStream;
import java.io.InputStreamReader;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.security.KeyStore;
import javax.net.ssl.KeyManagerFactory;
import javax.net.ssl.SSLContext;
import javax.net.ssl.SSLParameters;
import javax.net.ssl.SSLSocket;
import javax.net.ssl.TrustManagerFactory;

public class TlsPeer {
    public static void main(String[] args) throws Exception {
        Path folder = Path.of(args[2]);
        char[] password = Files.readAllLines(Path.of(args[3])).get(0).toCharArray();

        KeyManagerFactory keys = KeyManagerFactory.getInstance("PKIX");
        keys.init(load(folder.resolve("keystore.p12"), password), password);
        TrustManagerFactory trust = TrustManagerFactory.getInstance("PKIX");
        trust.init(load(folder.resolve("truststore.p12"), password));
        SSLContext context = SSLContext.getInstance("TLS");
        context.init(keys.getKeyManagers(), trust.getTrustManagers(), null);

        try (SSLSocket socket = (SSLSocket) context.getSocketFactory()
                .createSocket(args[0], Integer.parseInt(args[1]))) {
            socket.setSoTimeout(20_000);
            SSLParameters parameters = socket.getSSLParameters();
            // A bare SSLSocket does not compare the server's name unless asked to.
            parameters.setEndpointIdentificationAlgorithm("HTTPS");
            parameters.setProtocols(new String[] {args[4]});
            socket.setSSLParameters(parameters);
            socket.getOutputStream().write("hello from Java\n".getBytes(StandardCharsets.UTF_8));
            socket.getOutputStream().flush();
            BufferedReader reader = new BufferedReader(
                    new InputStreamReader(socket.getInputStream(), StandardCharsets.UTF_8));
            System.out.println(socket.getSession().getProtocol() + " " + reader.readLine());
        }
    }

    private static KeyStore load(Path file, char[] password) throws Exception {
        KeyStore store = KeyStore.getInstance("PKCS12");
        try (InputStream in = new FileInputStream(file.toFile())) {
            store.load(in, password);
        }
        return store;
    }
}
